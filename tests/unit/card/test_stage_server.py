"""A stage process without its process: a real stage and coordinator, and a job from its call to its end."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.card.coordinator import Coordinator
from deployments.card.protocol import RemoteCoordinator
from deployments.messages import Terms
from deployments.stage import server as module
from deployments.stage.process_memory import STARTING_BYTES
from deployments.stage.server import StageServer
from deployments.stage.wire import unpack
from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidRequest
from lightx2v.models.visits import Pause, Visits
from lightx2v.stages.interface import Control, StageInputs
from lightx2v.types import GenerateRequest, Size
from lightx2v.weights.device import CpuDevice
from tests.unit.card.members import (
    FakeCard,
    Processes,
    ask,
    granted,
    held,
    join,
    member,
    release,
    shrink,
    within,
)
from tests.unit.card.test_coordinator_client import Remote, rests

TERMS = Terms(admitted_at=0.0, seconds=60.0)
REQUEST = GenerateRequest("a", "a red circle", Size(64, 64), 1, 0)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def actor(card: FakeCard, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """The coordinator of a card that everything fits on."""
    card.nbytes = 1 << 40
    actor = Remote(Coordinator("card"))
    monkeypatch.setattr(module, "card_identity", lambda cuda: f"cpu-test-{os.getpid()}")
    monkeypatch.setattr(module, "find_coordinator", lambda card_id: RemoteCoordinator(actor))
    return actor


async def served(checkpoint: Path, cuda: bool = False, **settings: Any) -> StageServer:
    server = StageServer.__new__(StageServer)
    await server.__init__("encode", "klein", EngineSettings(model=str(checkpoint), **settings), cuda)  # type: ignore[misc]
    return server


async def rest(actor: Remote) -> None:
    """Returns when all leases are back."""
    async with asyncio.timeout(4):
        while not await rests(actor):
            await asyncio.sleep(0)


async def test_a_job_is_answered_before_its_lease_is_back(actor: Remote, checkpoint: Path) -> None:
    server = await served(checkpoint, conditioning_cache=0)
    reply = actor.held["release"] = asyncio.Event()
    first = await within(server.call("run", REQUEST, TERMS), 20)
    second = asyncio.create_task(server.call("run", REQUEST, TERMS))
    while actor.calls.count("release") == 0:
        await asyncio.sleep(0)
    assert actor.calls.count("lease") == 1, "one at a time, and the first has not ended"
    reply.set()
    assert torch.equal(unpack(await within(second)).positive, unpack(first).positive)
    await rest(actor)


async def test_what_fails_is_raised_and_its_lease_is_back(
    actor: Remote, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await served(checkpoint)

    def fail(*_: Any) -> None:
        raise InvalidRequest("no")

    monkeypatch.setattr(server._stage, "run", fail)
    with pytest.raises(InvalidRequest):
        await within(server.call("run", REQUEST, TERMS))
    await rest(actor)
    assert (await actor.coordinator.report())["grants_total"] == 1


async def test_who_goes_away_ends_the_job(actor: Remote, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await served(checkpoint)
    began, ended = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work(request: GenerateRequest, inputs: StageInputs, control: Control) -> Visits[None]:
        yield Pause.BLOCK
        loop.call_soon_threadsafe(began.set)
        while not control.cancelled():
            pass
        loop.call_soon_threadsafe(ended.set)

    monkeypatch.setattr(server._stage, "run", work)
    call = asyncio.create_task(server.call("run", REQUEST, TERMS))
    await within(began.wait())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(call)
    await within(ended.wait())
    await rest(actor)
    assert await granted(actor.coordinator) == server._stage.resident


async def test_what_fails_after_the_answer_is_in_the_log(
    actor: Remote, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = await served(checkpoint)

    async def fail() -> None:
        raise OSError("the driver does not tell")

    monkeypatch.setattr(server._jobs, "_rested", fail)
    with caplog.at_level(logging.ERROR):
        await within(server.call("run", REQUEST, TERMS))
        while "the driver does not tell" not in caplog.text:
            await asyncio.sleep(0)


async def test_who_starts_on_a_gpu_is_known_before_it_takes_memory(
    actor: Remote, card: FakeCard, checkpoint: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another stage rests on all of the card: it gives way before the CUDA context is made."""
    nbytes = card.nbytes
    resting = member(processes(), "decode", nbytes)
    epoch = await join(actor.coordinator, resting)
    await release(actor.coordinator, await within(await ask(actor.coordinator, resting)), nbytes)
    starting = asyncio.create_task(served_on_gpu(checkpoint, actor.coordinator, monkeypatch))
    command = shrink(await within(actor.coordinator.next_command(epoch, resting.holder.id), 20))
    assert command.weights == nbytes - STARTING_BYTES
    await actor.coordinator.resized(epoch, resting.holder.id, command.id, held(command.weights))
    seen = await within(starting, 20)
    assert seen == nbytes, "the bytes of the context were set aside when the device was opened"
    stages = (await actor.coordinator.report())["stages"]
    assert [stage["context_bytes"] for stage in stages] == [0, 7], "as it was measured then"


async def served_on_gpu(checkpoint: Path, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> int:
    """Starts a server on what it takes for a GPU; the bytes that were granted when it opened the device."""
    seen: list[int] = []
    loop = asyncio.get_running_loop()

    def open_cpu(kind: str, settings: EngineSettings, card_id: str) -> CpuDevice:
        assert kind == "cuda"
        seen.append(asyncio.run_coroutine_threadsafe(granted(coordinator), loop).result())
        return CpuDevice()

    class Measured:
        def __init__(self, card_id: str) -> None:
            pass

        def before_any_run(self) -> int:
            return 7

        def at_rest(self, weights: int) -> int:
            return 7

    monkeypatch.setattr(module, "open_device", open_cpu)
    monkeypatch.setattr(module, "ProcessMemory", Measured)
    await served(checkpoint, cuda=True)
    return seen[0]
