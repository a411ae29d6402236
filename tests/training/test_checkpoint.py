"""The checkpoint that the project ships, through the engine, at its own defaults, by the judge."""

from __future__ import annotations

import pytest
import torch

from lightx2v.config import EngineSettings
from lightx2v.pipeline import Pipeline
from lightx2v.types import Reference
from training.evaluate import unseen
from training.gallery import drawn, request
from training.judge import judge

COUNT, WRONG = 6, 1
"""Each is right with a probability of 0.97, so more than one is wrong in one list of seventy."""


@pytest.fixture(scope="module")
def settings() -> EngineSettings:
    return EngineSettings(device="cpu")


@pytest.mark.parametrize("references", [0, 1, 2])
def test_pictures_are_what_was_asked_for(settings: EngineSettings, references: int) -> None:
    pipeline = Pipeline(settings)
    tasks = unseen(references, COUNT, seed=3)
    shown = [[Reference(drawn(scene)) for scene in task.references] for task in tasks]
    made = [pipeline.generate(request(task, settings), of) for task, of in zip(tasks, shown, strict=True)]
    pictures = torch.stack([torch.from_numpy(picture.pixels).permute(2, 0, 1) / 255 for picture in made])
    faults = [f"{task.caption}: {v.faults}" for task, v in zip(tasks, judge(pictures, tasks), strict=True) if v.faults]
    assert len(faults) <= WRONG, faults
