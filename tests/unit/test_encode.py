"""How often an encoder's weights are used: for every prompt that is not known, and for pictures anew each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightx2v.config import EngineSettings
from lightx2v.models.visits import Pause, Visits
from lightx2v.residency.lease import Grant
from lightx2v.stages.encode import EncodeStage
from lightx2v.stages.interface import Control, StageInputs
from lightx2v.types import GenerateRequest, Picture, Size
from lightx2v.weights.device import CpuDevice
from tests.unit.toy import REQUEST, WIDTH, Toy, write_toy

HIDDEN = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)


class Reader(Toy):
    """Every request has a negative prompt."""

    sees = False

    def is_guided(self, request: GenerateRequest) -> bool:
        return True

    def negative(self, request: GenerateRequest) -> str:
        return ""

    def encode(self, prompt: str, pictures: Sequence[Picture], device: torch.device) -> Visits[torch.Tensor]:
        states = HIDDEN
        for name in self.blocks:
            yield Pause.BLOCK
            states = self.module.get_submodule(name)(states)
        return states


@pytest.fixture
def stage(tmp_path: Path) -> EncodeStage:
    write_toy(tmp_path / "toy")
    reader: Any = Reader()
    return EncodeStage(reader, [tmp_path / "toy"], EngineSettings(), CpuDevice(), REQUEST)


def make(stage: EncodeStage, prompt: str) -> int:
    """Bytes that are moved where every block is streamed."""
    before = stage.device.h2d_bytes
    grant = Grant(stage.rest, 0, stage.slot_bytes, stage.rest)
    stage.perform(grant, "run", replace(REQUEST, prompt=prompt), StageInputs(), Control())
    return stage.device.h2d_bytes - before


def test_a_prompt_that_is_known_moves_nothing(stage: EncodeStage) -> None:
    streamed = stage.reachable - stage.rest
    assert stage.planned_passes(REQUEST) == 1, "after others like it"
    assert make(stage, "a cat") == stage.rest + streamed, "both prompts pass a block together"
    assert make(stage, "a dog") == streamed, "the negative prompt is known"
    known = replace(REQUEST, prompt="a dog")
    assert stage.passes(known) == 0
    assert stage.recall(known) is not None


def test_what_depends_on_pictures_is_made_anew(stage: EncodeStage) -> None:
    stage.component.sees = True
    make(stage, REQUEST.prompt)
    seen = replace(REQUEST, references=(Size(64, 64),))
    assert (stage.passes(seen), stage.planned_passes(seen)) == (1, 1)
    assert stage.recall(seen) is None
    assert stage.recall(REQUEST) is not None
