"""A stage that runs out of memory gives back what it can, once, before it says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lightx2v.config import EngineSettings
from lightx2v.core import GenerateRequest
from lightx2v.errors import OutOfMemory
from lightx2v.residency.lease import Grant
from lightx2v.stages.run import Control, StageInputs
from lightx2v.stages.stage import Stage
from lightx2v.weights.card import CpuCard
from lightx2v.weights.device import CpuDevice
from tests.unit.toy import REQUEST, WIDTH, Toy, expected, write_toy

HIDDEN = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)


class Hungry(Stage[Toy]):
    """Its runs find memory only while at most `most` bytes of weights are resident."""

    name = "denoise"
    most = 0
    attempts = 0

    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> None:
        raise NotImplementedError

    def compute(self, request: GenerateRequest, hidden: torch.Tensor) -> torch.Tensor:
        self.attempts += 1
        if self.resident > self.most:
            raise OutOfMemory("activations")
        output: torch.Tensor = self.component.module(hidden)
        return output


@pytest.fixture
def state(tmp_path: Path) -> dict[str, torch.Tensor]:
    return write_toy(tmp_path / "toy")


@pytest.fixture
def stage(tmp_path: Path, state: dict[str, torch.Tensor]) -> Hungry:
    """On a card with not a byte more than all its weights take."""
    free = Hungry(Toy(), tmp_path, EngineSettings(), CpuDevice(), REQUEST)
    memory = CpuCard(f"test-{tmp_path.name}-{os.getpid()}", free.reachable)
    return Hungry(Toy(), tmp_path, EngineSettings(), CpuDevice(memory), REQUEST)


def test_it_runs_again_with_its_weights_streamed(stage: Hungry, state: dict[str, torch.Tensor]) -> None:
    stage.most = stage.rest
    grant = Grant(stage.reachable, 0, 0, stage.reachable)
    assert torch.equal(stage.perform(grant, stage.compute, REQUEST, HIDDEN), expected(state, HIDDEN))
    assert stage.attempts == 2
    assert stage.resident == stage.rest


def test_it_runs_once_where_there_is_room(stage: Hungry, state: dict[str, torch.Tensor]) -> None:
    stage.most = stage.reachable
    grant = Grant(stage.reachable, 0, 0, stage.reachable)
    assert torch.equal(stage.perform(grant, stage.compute, REQUEST, HIDDEN), expected(state, HIDDEN))
    assert (stage.attempts, stage.resident) == (1, stage.reachable)


def test_it_keeps_no_more_than_it_was_granted_to_keep(stage: Hungry) -> None:
    stage.most = stage.rest
    stage.perform(Grant(stage.reachable, 0, 0, 0), stage.compute, REQUEST, HIDDEN)
    assert stage.resident == 0


@pytest.mark.parametrize("has_more", [True, False])
def test_it_says_so_when_there_is_nothing_left_to_give(stage: Hungry, has_more: bool) -> None:
    stage.most = stage.rest - 1
    weights = stage.reachable if has_more else stage.rest
    slot_bytes = 0 if has_more else stage.slot_bytes
    grant = Grant(weights, stage.reachable - weights - slot_bytes, slot_bytes, 0)
    with pytest.raises(OutOfMemory, match="activations"):
        stage.perform(grant, stage.compute, REQUEST, HIDDEN)
    assert (stage.attempts, stage.resident) == (2 if has_more else 1, 0)


def test_it_fetches_whole_units_up_to_a_limit_and_runs_with_them(stage: Hungry, state: dict[str, torch.Tensor]) -> None:
    stage.most = stage.reachable
    fetched = stage.fetch(stage.reachable - 1)
    assert stage.rest < fetched < stage.reachable
    moved = stage.device.h2d_bytes
    assert moved == fetched
    grant = Grant(stage.reachable, 0, 0, fetched)
    assert torch.equal(stage.perform(grant, stage.compute, REQUEST, HIDDEN), expected(state, HIDDEN))
    assert stage.device.h2d_bytes - moved == stage.reachable - fetched
    assert stage.drop(0) == 0


def test_what_cannot_be_fetched_stays_away(stage: Hungry, caplog: pytest.LogCaptureFixture) -> None:
    taken = stage.device.allocate(stage.reachable)
    assert stage.fetch(stage.reachable) == 0
    assert "fetched nothing" in caplog.text
    stage.device.free(taken)
