"""Threads stay within their bound whoever is cancelled, and what runs beside a failure ends with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deployments.concurrency import Threads, gathered

pytestmark = pytest.mark.timeout(30)


class Work:
    """Threads that go on until they are let, and how many do at a time."""

    def __init__(self) -> None:
        self._lock, self._end = threading.Lock(), threading.Event()
        self._loop = asyncio.get_running_loop()
        self.started = asyncio.Event()
        self.now = self.most = 0

    def __call__(self, result: int) -> int:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self._loop.call_soon_threadsafe(self.started.set)
        self._end.wait()
        with self._lock:
            self.now -= 1
        return result

    def finish(self) -> None:
        self._end.set()


@pytest.fixture
async def work() -> AsyncIterator[Work]:
    one = Work()
    yield one
    one.finish()


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_thread_keeps_its_place_when_its_caller_is_cancelled(work: Work) -> None:
    threads = Threads(1)
    running = asyncio.create_task(threads.run(work, 0))
    await work.started.wait()
    await cancelled(running)
    work.started.clear()
    following = asyncio.create_task(threads.run(work, 1))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not work.started.is_set()
    work.finish()
    assert await following == 1
    assert work.most == 1


async def test_who_waits_for_a_place_gives_it_up(work: Work) -> None:
    threads = Threads(1)
    running = asyncio.create_task(threads.run(work, 0))
    await work.started.wait()
    waiting = asyncio.create_task(threads.run(work, 1))
    await asyncio.sleep(0)
    await cancelled(waiting)
    work.finish()
    assert [await running, await threads.run(work, 2)] == [0, 2]


async def test_an_error_leaves_a_place_free() -> None:
    threads = Threads(1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)


async def test_the_first_error_ends_the_others() -> None:
    ended = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fail() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        await gathered([wait(), fail()])
    assert ended.is_set()


async def test_results_are_in_order() -> None:
    async def give(value: int) -> int:
        for _ in range(3 - value):
            await asyncio.sleep(0)
        return value

    assert await gathered(map(give, range(3))) == [0, 1, 2]
