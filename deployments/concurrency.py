"""What asyncio leaves open: threads that outlive a cancellation, and siblings that outlive a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """Blocking functions in at most `limit` threads of their own."""

    def __init__(self, limit: int) -> None:
        self._pool = ThreadPoolExecutor(limit)
        self._free = asyncio.Semaphore(limit)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """The result of `function`. A caller that is cancelled leaves at once, so that a deadline holds; its thread
        keeps its place until it ends, because nothing can stop it."""
        await self._free.acquire()
        running = asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        running.add_done_callback(lambda _: self._free.release())
        return await asyncio.shield(running)


async def gathered(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order. The first error is raised when the others have been cancelled and have ended."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in coroutines]
    except ExceptionGroup as error:
        raise first(error) from None
    return [task.result() for task in tasks]


def first(group: ExceptionGroup) -> Exception:
    """What failed first; the other tasks were cancelled for it."""
    error = group.exceptions[0]
    return first(error) if isinstance(error, ExceptionGroup) else error
