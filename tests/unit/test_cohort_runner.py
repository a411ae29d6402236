"""The jobs of a stage run in cohorts, each under one lease: who joins, who leaves, and what an error reaches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.messages import Terms
from deployments.stage.cohort_runner import CohortRunner
from deployments.stage.jobs import Job
from deployments.stage.weights import StageWeights
from deployments.stage.wire import unpack
from lightx2v.config import EngineSettings
from lightx2v.errors import DeadlineExceeded, InvalidRequest, OutOfMemory
from lightx2v.models.visits import Pause, Visits
from lightx2v.residency.lease import Lease, Room, Work
from lightx2v.stages.interface import Control, StageInputs
from lightx2v.stages.stage import Stage
from lightx2v.types import GenerateRequest, Progress
from lightx2v.weights.device import CpuDevice
from tests.unit.toy import REQUEST, WIDTH, Toy, write_toy

BLOCKS = 4


class Walker(Stage[Toy]):
    """Passes all blocks in every step. `react` may do something at the end of a request's step, in the stage's thread;
    what it raises is the request's error."""

    name = "denoise"

    def passes(self, request: GenerateRequest) -> int:
        return request.steps

    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Visits[torch.Tensor]:
        hidden = torch.full((2, WIDTH), float(request.seed))
        for step in range(request.steps):
            control.check()
            hidden = self.component.module.get_submodule("entry")(hidden)
            for index in range(BLOCKS):
                yield Pause.BLOCK
                hidden = self.component.module.get_submodule(f"blocks.{index}")(hidden)
            self.react(request, step)
            control.report(Progress(step + 1, request.steps))
            if step + 1 < request.steps:
                yield Pause.STEP
        return hidden

    def react(self, request: GenerateRequest, step: int) -> None:
        return None


class Card:
    """Grants every lease at once, unless it refuses or holds it back."""

    def __init__(self, stage: Walker, weights: int | None = None, width: int = 8) -> None:
        self.weights = stage.rest if weights is None else weights
        self.stage, self.width = stage, width
        self.leases: list[tuple[Room, Work]] = []
        self.told: list[tuple[Work, Mapping[str, Progress]]] = []
        self.refusals: list[Exception] = []
        self.held = -1
        self.idle, self.open = asyncio.Event(), asyncio.Event()
        self.open.set()

    @asynccontextmanager
    async def lease(self, room: Room, work: Work, seconds: float) -> AsyncIterator[Lease]:
        await self.open.wait()
        if self.refusals:
            raise self.refusals.pop(0)
        self.leases.append((room, work))
        extra = room.activation_bytes + (self.width - 1) * room.member_bytes
        self.idle.clear()
        try:
            yield Lease(self.weights, extra, self.stage.slot_bytes, 0, "lease", "holder", width=self.width)
        finally:
            self.idle.set()

    def holds(self, nbytes: int) -> None:
        self.held = nbytes

    def tell(self, work: Work, progress: Mapping[str, Progress]) -> None:
        self.told.append((work, progress))


class Bench:
    """A runner over a toy stage, within one event loop."""

    def __init__(self, stage: Walker, **card: Any) -> None:
        thread = ThreadPoolExecutor(1)
        weights = StageWeights(thread)
        weights.stage = stage
        self.stage, self.card, self.rests = stage, Card(stage, **card), 0
        self.runner = CohortRunner(stage, self.card, weights, thread, self._rest)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.runner.run())
        self._loop = asyncio.get_running_loop()

    async def _rest(self) -> None:
        self.rests += 1

    def submit(self, seed: int, steps: int = 2, priority: int = 0, turn: float = 0.0) -> Job:
        request = replace(REQUEST, id=str(seed), seed=seed, steps=steps)
        terms = Terms(float(seed), 60.0, priority, turn)
        answer: asyncio.Future[Any] = self._loop.create_future()
        job = Job("run", request, StageInputs(), terms, self.stage.room(request), steps, 1.0, answer)
        self.runner.submit(job)
        return job

    async def end(self, *jobs: Job) -> None:
        """Waits for the answers, and for the end of the last lease."""
        await asyncio.gather(*(job.answer for job in jobs))
        await self.card.idle.wait()

    def soon(self, function: Callable[[], object]) -> None:
        """Calls a function of the loop from the stage's thread, and waits for it."""
        asyncio.run_coroutine_threadsafe(_call(function), self._loop).result()


async def _call(function: Callable[[], object]) -> None:
    function()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Walker]:
    write_toy(tmp_path / "toy", BLOCKS)
    stage = Walker(Toy(BLOCKS), [tmp_path / "toy"], EngineSettings(), CpuDevice(), REQUEST)
    yield stage
    stage.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def alone(stage: Walker, job: Job) -> torch.Tensor:
    grant = Card(stage).weights
    whole = Lease(grant, 1 << 30, stage.slot_bytes, 0, "alone", "holder")
    made: torch.Tensor = stage.perform(whole, "run", job.request, StageInputs(), Control())
    return made


def same(stage: Walker, job: Job) -> bool:
    return torch.equal(unpack(job.answer.result()), alone(stage, job))


def test_jobs_that_wait_together_share_a_lease_and_every_passage_of_a_block(stage: Walker) -> None:
    async def work() -> None:
        bench = Bench(stage)
        before = stage.device.h2d_bytes
        jobs = [bench.submit(seed, steps) for seed, steps in ((1, 3), (2, 1), (3, 2))]
        await bench.end(*jobs)
        assert len(bench.card.leases) == 1
        streamed = sum(unit.nbytes for unit in stage._residence.layout.blocks)
        assert stage.device.h2d_bytes - before == stage.rest + 3 * streamed
        assert all(same(stage, job) for job in jobs)
        bench.task.cancel()

    run(work)


def test_a_job_that_comes_during_a_run_joins_at_the_next_round(stage: Walker) -> None:
    async def work() -> None:
        bench, late = Bench(stage), list[Job]()

        def react(request: GenerateRequest, step: int) -> None:
            if request.seed == 1 and step == 0:
                bench.soon(lambda: late.append(bench.submit(2, 1)))

        stage.react = react  # type: ignore[method-assign]
        first = bench.submit(1, 3)
        await bench.end(first)
        assert late[0].answer.done()
        assert len(bench.card.leases) == 1
        assert same(stage, late[0])
        bench.task.cancel()

    run(work)


def test_a_recalled_lease_ends_after_the_round_and_the_job_goes_on_in_the_next(stage: Walker) -> None:
    async def work() -> None:
        bench, steps = Bench(stage), list[int]()

        def react(request: GenerateRequest, step: int) -> None:
            steps.append(step)
            if step == 0:
                bench.soon(bench.runner.recall)

        stage.react = react  # type: ignore[method-assign]
        job = bench.submit(1, 3)
        await bench.end(job)
        assert len(bench.card.leases) == 2
        assert steps == [0, 1, 2]
        assert bench.card.leases[1][1].jobs == 1
        stage.react = lambda *_: None  # type: ignore[method-assign]
        assert same(stage, job)
        bench.task.cancel()

    run(work)


def test_an_error_of_one_member_is_its_own(stage: Walker) -> None:
    async def work() -> None:
        bench = Bench(stage)

        def react(request: GenerateRequest, step: int) -> None:
            if request.seed == 2:
                raise InvalidRequest("no", "prompt")

        stage.react = react  # type: ignore[method-assign]
        jobs = [bench.submit(seed, 2) for seed in (1, 2, 3)]
        results = await asyncio.gather(*(job.answer for job in jobs), return_exceptions=True)
        await bench.card.idle.wait()
        assert isinstance(results[1], InvalidRequest)
        stage.react = lambda *_: None  # type: ignore[method-assign]
        assert same(stage, jobs[0])
        assert same(stage, jobs[2])
        bench.task.cancel()

    run(work)


def test_who_runs_out_of_memory_runs_alone_with_the_least_weights(stage: Walker) -> None:
    async def work() -> None:
        bench, residents = Bench(stage, weights=stage.reachable), list[int]()

        def react(request: GenerateRequest, step: int) -> None:
            if request.seed == 2:
                residents.append(stage.resident)
                if stage.resident > stage.rest:
                    raise OutOfMemory("activations")

        stage.react = react  # type: ignore[method-assign]
        jobs = [bench.submit(seed, 2) for seed in (1, 2, 3)]
        await bench.end(*jobs)
        assert residents == [stage.reachable, stage.rest, stage.rest]
        assert all(same(stage, job) for job in jobs)
        bench.task.cancel()

    run(work)


def test_who_runs_out_of_memory_with_the_least_weights_is_refused(stage: Walker) -> None:
    async def work() -> None:
        bench = Bench(stage)

        def react(request: GenerateRequest, step: int) -> None:
            raise OutOfMemory("activations")

        stage.react = react  # type: ignore[method-assign]
        with pytest.raises(OutOfMemory):
            await bench.submit(1).answer
        bench.task.cancel()

    run(work)


def test_a_refused_lease_fails_the_job_that_it_was_for_and_no_other(stage: Walker) -> None:
    async def work() -> None:
        bench = Bench(stage)
        bench.card.refusals = [DeadlineExceeded("too late")]
        first, second = bench.submit(1), bench.submit(2)
        with pytest.raises(DeadlineExceeded):
            await first.answer
        await bench.end(second)
        assert same(stage, second)
        bench.task.cancel()

    run(work)


def test_nobody_asks_for_a_caller_that_is_gone(stage: Walker) -> None:
    async def work() -> None:
        bench = Bench(stage)
        bench.card.open.clear()
        gone = bench.submit(1)
        await asyncio.sleep(0)
        bench.runner.cancel(gone)
        bench.card.open.set()
        kept = bench.submit(2)
        await bench.end(kept)
        assert [work.jobs for _, work in bench.card.leases] == [1]
        assert not gone.answer.done()
        bench.task.cancel()

    run(work)


def test_higher_priority_goes_first_then_the_earlier_turn(stage: Walker) -> None:
    async def work() -> None:
        bench, order = Bench(stage, width=1), list[int]()
        stage.react = lambda request, step: order.append(request.seed)  # type: ignore[method-assign]
        jobs = [bench.submit(seed, 1, *rank) for seed, rank in enumerate(((0, 2.0), (0, 1.0), (5, 9.0), (-5, 0.0)))]
        await bench.end(*jobs)
        assert order == [2, 1, 0, 3]
        bench.task.cancel()

    run(work)


def test_the_coordinator_is_told_what_is_left(stage: Walker) -> None:
    async def work() -> None:
        bench = Bench(stage)
        jobs = [bench.submit(seed, steps) for seed, steps in ((1, 2), (2, 3))]
        await bench.end(*jobs)
        progress = [progress for _, progress in bench.card.told if progress]
        assert progress[0] == {"1": Progress(1, 2), "2": Progress(1, 3)}, "of each request"
        assert progress[1] == {"2": Progress(2, 3)}, "of those that run"
        await bench.end(bench.submit(3, 2, priority=4))
        work, _ = bench.card.told[-1]
        assert (work.jobs, work.priority) == (1, 4)
        assert work.seconds > 0
        bench.task.cancel()

    run(work)
