"""Runs the waiting jobs of a stage, cohort after cohort, each under one lease."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import torch

from deployments.stage.coordinator_client import CoordinatorClient
from deployments.stage.jobs import Job, JobQueue
from deployments.stage.pace import Pace
from deployments.stage.weights import StageWeights
from deployments.stage.wire import pack
from lightx2v.errors import LightError, OutOfMemory
from lightx2v.models.visits import Move
from lightx2v.residency.lease import Grant, Lease, Work
from lightx2v.stages.cohort import Cohort, Member, let_go
from lightx2v.stages.interface import Control, StageMethod
from lightx2v.stages.stage import Stage
from lightx2v.types import Progress

T = TypeVar("T")

log = logging.getLogger(__name__)


class CohortRunner:
    """Leases memory for the first waiting job, and runs with it all that fit beside it. Jobs join and leave between
    rounds. A recalled lease ends after the round; its jobs wait then, with their tensors on the host.

    All of it happens in the event loop, but for the rounds, which run in `thread`. `rested` is awaited after each
    lease.
    """

    def __init__(
        self,
        stage: Stage[Any],
        client: CoordinatorClient,
        weights: StageWeights,
        thread: Executor,
        rested: Callable[[], Awaitable[None]],
    ) -> None:
        self._stage, self._client, self._weights, self._thread, self._rested = stage, client, weights, thread, rested
        self._loop = asyncio.get_running_loop()
        self._queue = JobQueue()
        self._running: dict[Job, None] = {}
        self._pace = Pace()
        self._asking: asyncio.Task[Lease] | None = None
        self._recalled = False
        self._crowd, self._moment = 0, 0.0
        self.failure: torch.AcceleratorError | None = None
        """The device's error, after which nothing runs here."""

    def submit(self, job: Job) -> None:
        """Adds a job; its answer will come."""
        self._queue.put(job)
        self._tell()

    def cancel(self, job: Job) -> None:
        """Gives up a job whose caller is gone. If it runs, it ends at its next step."""
        job.cancelled.set()
        self._queue.remove(job)
        if self._asking is not None and not self._queue:
            self._asking.cancel()
        self._tell()

    def recall(self) -> None:
        """Ends the running lease after its round."""
        self._recalled = True

    async def run(self) -> None:
        """Runs jobs for good."""
        while True:
            await self._queue.filled()
            if (job := self._queue.first()) is not None:
                await self._lease_for(job)

    async def _lease_for(self, job: Job) -> None:
        async with AsyncExitStack() as stack:
            lease = await self._ask(job, stack)
            if lease is None:
                return
            await stack.enter_async_context(self._weights.lock)
            await self._queue.gathered(self._crowd, self._moment)
            self._recalled, self._crowd, self._moment = False, 0, 0.0
            try:
                await self._use(lease)
            finally:
                self._client.holds(self._stage.resident)
        try:
            await self._rested()
        except Exception:  # the jobs have their answers; the next lease is served all the same
            log.exception("after a run of the %s stage", self._stage.name)

    async def _ask(self, job: Job, stack: AsyncExitStack) -> Lease | None:
        """A lease for `job`, until `stack` is closed. None if it was refused, or nobody waits for it any more."""
        lease = self._client.lease(job.room, self._work(), job.seconds_left)
        self._asking = asyncio.ensure_future(stack.enter_async_context(lease))
        try:
            return await self._asking
        except LightError as error:
            self._queue.remove(job)
            job.fail(error)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
        finally:
            self._asking = None
        return None

    async def _use(self, lease: Lease) -> None:
        """Runs jobs within a lease. One that ran out of memory runs alone, with the least weights resident."""
        if (first := self._queue.first()) is None:
            return
        grant = self._stage.least(lease) if first.is_starved else lease
        began, done, rounds = time.monotonic(), 0.0, 0
        try:
            async with self._granted(grant, first.method) as cohort:
                async for work in self._rounds(cohort, grant, first):
                    done, rounds = done + work, rounds + 1
        except Exception as error:  # of the weights or the device: it is every member's
            self._fail_all(error)
        self._note(grant, rounds, done, time.monotonic() - began)

    def _note(self, grant: Grant, rounds: int, work: float, seconds: float) -> None:
        """Learns from a run. Half of what another visit of the streamed weights takes is worth waiting for whoever is
        about to come."""
        self._pace.note(work, seconds)
        streamed = 1 - grant.weights / max(1, self._stage.reachable)
        self._moment = streamed * seconds / max(1, rounds) / 2
        log.debug("%s: jobs %d, rounds %d, %.3f s", self._stage.name, self._crowd, rounds, seconds)

    async def _rounds(self, cohort: Cohort, grant: Grant, first: Job) -> AsyncIterator[float]:
        """Runs rounds until nobody is left, or the lease is recalled. Yields the work of each."""
        while True:
            while not self._recalled and (job := self._next(cohort, first)) is not None:
                await self._join(cohort, job, grant)
            if not cohort.members:
                return
            if self._recalled:
                await self._park(cohort)
                return
            yield sum(job.work for job in self._running)
            await self._in_thread(_round, cohort, bool(self._queue))
            self._tell()

    def _next(self, cohort: Cohort, first: Job) -> Job | None:
        """The waiting job that joins the cohort of `first`; None if the next one has to wait."""
        job = self._queue.first()
        if job is None or job.method != first.method or not cohort.fits(job.room):
            return None
        if job.is_starved != first.is_starved or (job.is_starved and cohort.members):
            return None
        return job

    async def _join(self, cohort: Cohort, job: Job, grant: Grant) -> None:
        self._queue.remove(job)
        self._running[job] = None
        self._crowd += 1
        try:
            if job.member is None:
                job.member = await self._in_thread(self._member, job, grant)
            else:
                await self._in_thread(job.member.move, Move.BACK)
        except Exception as error:  # it could not begin, or not go on: the others are not concerned
            self._conclude(job, partial(self._refuse, job, error))
        else:
            cohort.join(job.member)

    def _member(self, job: Job, grant: Grant) -> Member:
        control = Control(job.cancelled.is_set, partial(_report, job))
        done, failed = partial(self._done, job), partial(self._failed, job, grant)
        return self._stage.member(job.method, job.request, job.inputs, control, done, failed)

    async def _park(self, cohort: Cohort) -> None:
        """Moves what the members have on the device to the host. They wait for the next lease."""
        await self._in_thread(cohort.move, Move.AWAY)
        for job in list(self._running):
            del self._running[job]
            self._queue.put(job)

    def _done(self, job: Job, output: Any) -> None:
        """Answers, from the stage's thread, while the stage still has its grant."""
        self._loop.call_soon_threadsafe(self._conclude, job, partial(job.resolve, pack(output)))

    def _failed(self, job: Job, grant: Grant, error: Exception) -> None:
        if isinstance(error, OutOfMemory) and grant.weights > self._stage.rest:
            log.warning("%s: %s; again with its weights streamed", self._stage.name, error)
            self._loop.call_soon_threadsafe(self._conclude, job, partial(self._starve, job))
        else:
            self._loop.call_soon_threadsafe(self._conclude, job, partial(self._refuse, job, error))

    def _conclude(self, job: Job, answer: Callable[[], None]) -> None:
        self._running.pop(job, None)
        answer()

    def _starve(self, job: Job) -> None:
        job.is_starved, job.member = True, None
        if not job.cancelled.is_set():
            self._queue.put(job)

    def _refuse(self, job: Job, error: Exception) -> None:
        if isinstance(error, torch.AcceleratorError):
            self.failure = error
        job.fail(error)

    def _fail_all(self, error: Exception) -> None:
        for job in list(self._running):
            self._conclude(job, partial(self._refuse, job, error))

    @asynccontextmanager
    async def _granted(self, grant: Grant, method: StageMethod) -> AsyncIterator[Cohort]:
        """The stage's cohort. All of it happens in the stage's thread."""
        context = self._stage.granted(grant, method)
        cohort = await self._in_thread(context.__enter__)
        try:
            yield cohort
        finally:
            await self._in_thread(context.__exit__, None, None, None)

    def _work(self) -> Work:
        """All that waits or runs here."""
        jobs = [*self._queue, *self._running]
        seconds = self._pace.seconds(sum(job.work * job.rounds_left for job in jobs))
        oldest = min((job.terms.admitted_at for job in jobs), default=time.time())
        return Work(len(jobs), seconds, oldest, max((job.terms.priority for job in jobs), default=0))

    def _tell(self) -> None:
        """Tells the coordinator what waits and runs, if it has a ticket or a lease of this stage."""
        if self._asking is not None or self._running:
            progress = {job.request.id: job.progress for job in self._running if job.progress is not None}
            self._client.tell(self._work(), progress)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await self._loop.run_in_executor(self._thread, function, *args)


def _report(job: Job, progress: Progress) -> None:
    """Notes the progress of a job. The coordinator is told after the round."""
    log.debug("request %s: step %d of %d", job.request.id, progress.step, progress.total)
    job.progress = progress


def _round(cohort: Cohort, others_wait: bool) -> None:
    """Runs a round. What an error's frames hold is let go in the stage's thread: further up they are coroutines."""
    try:
        cohort.run_round(others_wait)
    except BaseException as error:
        let_go(error)
        raise
