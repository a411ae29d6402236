"""A stage process without its process: a real stage and coordinator, and a job from its call to its end."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments import stage as module
from deployments.calls import RemoteCoordinator
from deployments.coordinator import Coordinator
from deployments.stage import StageServer
from deployments.wire import unpack
from lightx2v.config import EngineSettings
from lightx2v.core import GenerateRequest, Size
from lightx2v.errors import InvalidRequest
from lightx2v.stages.run import Control, StageInputs
from tests.unit.coordinator.members import FakeCard, granted, within
from tests.unit.coordinator.test_lessee import TERMS, Remote, rests

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


async def served(checkpoint: Path, **settings: Any) -> StageServer:
    server = StageServer.__new__(StageServer)
    await server.__init__("encode", "klein", EngineSettings(model=str(checkpoint), **settings), False)  # type: ignore[misc]
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

    def work(request: GenerateRequest, inputs: StageInputs, control: Control) -> None:
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

    monkeypatch.setattr(server, "_weigh", fail)
    with caplog.at_level(logging.ERROR, module.__name__):
        await within(server.call("run", REQUEST, TERMS))
        while "the driver does not tell" not in caplog.text:
            await asyncio.sleep(0)
