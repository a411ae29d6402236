"""Cohorts on a real GPU: every member has the bits of its request alone, also if its tensors left the card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightx2v.residency.lease import Grant
from lightx2v.weights.device import CudaDevice
from tests.parity.cohort_run import Run, check, limits
from tests.parity.cohorts import Fate, Model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROOM = 1 << 30


@pytest.fixture(scope="module")
def model(distilled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(distilled, tmp_path_factory.mktemp("cohorts"), CudaDevice(), "bfloat16")
    yield model
    for stage in model.stages.values():
        stage.close()


@pytest.mark.parametrize("recalls", [frozenset[int](), frozenset({1, 3})], ids=["to_the_end", "recalled"])
@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_members_have_the_bits_of_a_request_alone(model: Model, part: float, recalls: frozenset[int]) -> None:
    """With none, half and all of the blocks resident. One member comes before each of the first rounds."""
    for kind, jobs in model.jobs.items():
        stage = model.stages[kind.stage]
        choices = limits(stage)
        weights = choices[round(part * (len(choices) - 1))]
        run = Run(model, kind, [Fate(job, arrives=job) for job in range(len(jobs))])
        run.through([Grant(weights, ROOM, stage.slot_bytes, weights, width=len(jobs))], recalls)
        check(run)
