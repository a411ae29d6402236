"""The jobs of a stage, and the order in which they run."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

from deployments.messages import Terms
from lightx2v.residency.lease import Room
from lightx2v.stages.cohort import Member
from lightx2v.stages.interface import StageInputs, StageMethod
from lightx2v.types import GenerateRequest, Progress


@dataclass(eq=False, slots=True)
class Job:
    """One call of a stage. `answer` gets the packed output, or the error."""

    method: StageMethod
    request: GenerateRequest
    inputs: StageInputs
    terms: Terms
    room: Room
    rounds: int
    """The rounds that it takes in a cohort."""
    work: float
    """The work of one round, to be compared with that of other jobs of the stage."""
    answer: asyncio.Future[Any]
    arrived: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    member: Member | None = None
    """Its progress, once it has begun. A job that had to pause goes on from there."""
    progress: Progress | None = None
    """The latest that it reported."""
    is_starved: bool = False
    """Whether it ran out of memory once. It runs alone then, with the least weights resident."""

    @property
    def rounds_left(self) -> int:
        return self.rounds if self.member is None else self.member.rounds

    @property
    def seconds_left(self) -> float:
        """Seconds until its work must have begun."""
        return self.terms.since(self.arrived).seconds

    def resolve(self, output: Any) -> None:
        """Hands the packed output to the caller, unless it is gone."""
        if not self.answer.done():
            self.answer.set_result(output)

    def fail(self, error: BaseException) -> None:
        """Hands an error to the caller, unless it is gone or has its answer."""
        if not self.answer.done():
            self.answer.set_exception(error)


class JobQueue:
    """The waiting jobs, the first one on top. Each change takes O(log n)."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, float, float], int, Job]] = []
        self._waiting: dict[Job, None] = {}
        self._count = count()
        self._filled, self._came = asyncio.Event(), asyncio.Event()
        self._latest = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._waiting)

    async def filled(self) -> None:
        """Returns when a job waits."""
        await self._filled.wait()

    async def gathered(self, crowd: int, moment: float) -> None:
        """Waits until as many as `crowd` jobs wait, or none has come for `moment` seconds. Callers who had their
        answers together come back together; who misses a visit of the weights needs one of their own."""
        while len(self) < crowd:
            self._came.clear()
            try:
                async with asyncio.timeout_at(self._latest + moment):
                    await self._came.wait()
            except TimeoutError:
                return

    def put(self, job: Job) -> None:
        """Adds a job."""
        heappush(self._heap, (job.terms.order, next(self._count), job))
        self._waiting[job] = None
        self._latest = asyncio.get_running_loop().time()
        self._filled.set()
        self._came.set()

    def remove(self, job: Job) -> None:
        """Removes a job, if it waits."""
        self._waiting.pop(job, None)
        if not self._waiting:
            self._filled.clear()

    def first(self) -> Job | None:
        """The job that runs next; None if none waits."""
        while self._heap and self._heap[0][-1] not in self._waiting:
            heappop(self._heap)  # it was removed
        return self._heap[0][-1] if self._heap else None
