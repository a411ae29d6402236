"""A stage that runs out of memory gives back what it can, once, before it says so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from lightx2v.config import EngineSettings, Granularity
from lightx2v.errors import OutOfMemory
from lightx2v.models.component import Autoencoder
from lightx2v.models.visits import Pause, Visits
from lightx2v.residency.lease import Grant
from lightx2v.stages.decode import DecodeStage
from lightx2v.stages.interface import Control, StageInputs
from lightx2v.stages.stage import Stage
from lightx2v.types import GenerateRequest, Latents, Picture
from lightx2v.weights.device import CpuDevice
from lightx2v.weights.emulated_card import EmulatedCard
from tests.unit.toy import REQUEST, WIDTH, Toy, expected, load_toy, one_pass, write_toy

HIDDEN = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)


def never() -> bool:
    return False


class Hungry(Stage[Toy]):
    """Its runs find memory only while at most `most` bytes of weights are resident."""

    name = "denoise"
    most = 0
    attempts = 0

    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Visits[torch.Tensor]:
        self.attempts += 1
        yield Pause.BLOCK
        if self.resident > self.most:
            raise OutOfMemory("activations")
        output: torch.Tensor = self.component.module(HIDDEN)
        return output


@pytest.fixture
def state(tmp_path: Path) -> dict[str, torch.Tensor]:
    return write_toy(tmp_path / "toy")


@pytest.fixture
def stage(tmp_path: Path, state: dict[str, torch.Tensor]) -> Hungry:
    """On a card with not a byte more than all its weights take."""
    free = Hungry(Toy(), [tmp_path / "toy"], EngineSettings(), CpuDevice(), REQUEST)
    memory = EmulatedCard(f"test-{tmp_path.name}-{os.getpid()}", free.reachable)
    return Hungry(Toy(), [tmp_path / "toy"], EngineSettings(), CpuDevice(memory), REQUEST)


def test_it_runs_again_with_its_weights_streamed(stage: Hungry, state: dict[str, torch.Tensor]) -> None:
    stage.most = stage.rest
    grant = Grant(stage.reachable, 0, 0, stage.reachable)
    assert torch.equal(stage.perform(grant, "run", REQUEST, StageInputs(), Control()), expected(state, HIDDEN))
    assert stage.attempts == 2
    assert stage.resident == stage.rest


def test_it_runs_once_where_there_is_room(stage: Hungry, state: dict[str, torch.Tensor]) -> None:
    stage.most = stage.reachable
    grant = Grant(stage.reachable, 0, 0, stage.reachable)
    assert torch.equal(stage.perform(grant, "run", REQUEST, StageInputs(), Control()), expected(state, HIDDEN))
    assert (stage.attempts, stage.resident) == (1, stage.reachable)


def test_it_keeps_no_more_than_it_was_granted_to_keep(stage: Hungry) -> None:
    stage.most = stage.rest
    stage.perform(Grant(stage.reachable, 0, 0, 0), "run", REQUEST, StageInputs(), Control())
    assert stage.resident == 0


@pytest.mark.parametrize("has_more", [True, False])
def test_it_says_so_when_there_is_nothing_left_to_give(stage: Hungry, has_more: bool) -> None:
    stage.most = stage.rest - 1
    weights = stage.reachable if has_more else stage.rest
    slot_bytes = 0 if has_more else stage.slot_bytes
    grant = Grant(weights, stage.reachable - weights - slot_bytes, slot_bytes, 0)
    with pytest.raises(OutOfMemory, match="activations"):
        stage.perform(grant, "run", REQUEST, StageInputs(), Control())
    assert (stage.attempts, stage.resident) == (2 if has_more else 1, 0)


def test_it_fetches_whole_units_up_to_a_limit_and_runs_with_them(stage: Hungry, state: dict[str, torch.Tensor]) -> None:
    stage.most = stage.reachable
    fetched = stage.fetch(stage.reachable - 1)
    assert stage.rest < fetched < stage.reachable
    moved = stage.device.h2d_bytes
    assert moved == fetched
    grant = Grant(stage.reachable, 0, 0, fetched)
    assert torch.equal(stage.perform(grant, "run", REQUEST, StageInputs(), Control()), expected(state, HIDDEN))
    assert stage.device.h2d_bytes - moved == stage.reachable - fetched
    assert stage.drop(0) == 0


def test_what_cannot_be_fetched_stays_away(stage: Hungry, caplog: pytest.LogCaptureFixture) -> None:
    taken = stage.device.allocate(stage.reachable)
    assert stage.fetch(stage.reachable) == 0
    assert "fetched nothing" in caplog.text
    stage.device.free(taken)


class Halves(Toy):
    """Two blocks of which each job enters one, as an autoencoder's do."""

    encode_blocks, decode_blocks = ("blocks.0",), ("blocks.1",)

    def __init__(self) -> None:
        super().__init__(2)

    def encode(self, request: GenerateRequest, picture: Picture, device: torch.device) -> Latents:
        return Latents(self._half(0, HIDDEN), 1, 3)

    def decode(self, latents: Latents) -> Picture:
        return Picture(self._half(1, latents.tokens).numpy())

    def _half(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        half: torch.Tensor = self.module.get_submodule(f"blocks.{index}")(hidden)
        return half


@pytest.mark.parametrize("granularity", ["block", "phase"])
@pytest.mark.parametrize("placed", range(3))
def test_a_job_moves_only_the_blocks_that_it_enters(tmp_path: Path, placed: int, granularity: Granularity) -> None:
    """Of an autoencoder the encoder or the decoder: whatever may stay while it runs, and however it is cut up."""
    write_toy(tmp_path / "toy", 2)
    settings = EngineSettings(cpu_offload=True, offload_granularity=granularity)
    stage = DecodeStage(cast(Autoencoder, Halves()), [tmp_path / "toy"], settings, CpuDevice(), REQUEST)
    half = (stage.reachable - stage.rest) // 2
    grant = Grant(stage.rest + placed * half, 1 << 20, stage.slot_bytes, 0)
    picture = Picture(np.zeros((1, 1, 3), np.uint8))
    (latents,) = stage.perform(grant, "encode", REQUEST, StageInputs(pictures=(picture,)), Control())
    assert stage.device.h2d_bytes == stage.rest + half
    inputs = StageInputs(latents=latents)
    stage.perform(grant, "run", REQUEST, inputs, Control())
    assert stage.device.h2d_bytes == 2 * (stage.rest + half)
    whole = Grant(stage.reachable, 1 << 20, 0, stage.reachable)
    stage.perform(whole, "run", REQUEST, inputs, Control())
    assert stage.resident == stage.reachable, "what is to stay comes with the first job"


def test_a_job_that_enters_what_it_did_not_name_is_an_error(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", 2)
    toy, residence = load_toy(tmp_path, CpuDevice(), 2)
    with (
        one_pass(residence, residence.layout.rest.nbytes, ("blocks.0",)),
        pytest.raises(RuntimeError, match=r"blocks\.1 is used"),
    ):
        toy.module(HIDDEN)
