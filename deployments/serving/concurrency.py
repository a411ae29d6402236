"""Helpers that asyncio lacks: bounded threads that outlive a cancellation, and a gather that leaves no siblings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """Runs blocking functions in at most `limit` threads."""

    def __init__(self, limit: int) -> None:
        self._pool = ThreadPoolExecutor(limit)
        self._free = asyncio.Semaphore(limit)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """The result of `function`. A cancelled caller leaves at once, so that deadlines hold. The thread cannot be
        stopped, so it counts until it ends."""
        await self._free.acquire()
        running = asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        running.add_done_callback(lambda _: self._free.release())
        return await asyncio.shield(running)


async def gathered(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order. Raises the first error, after the others were cancelled and have ended."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in coroutines]
    except ExceptionGroup as error:
        raise first(error) from None
    return [task.result() for task in tasks]


def first(group: ExceptionGroup) -> Exception:
    """The first error of a group, also in nested groups; the other tasks were cancelled for it."""
    error = group.exceptions[0]
    return first(error) if isinstance(error, ExceptionGroup) else error
