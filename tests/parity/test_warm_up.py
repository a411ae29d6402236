"""What a server rehearses, of whatever family: what its model takes, and all that a user would have to wait for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch._dynamo.testing import CompileCounter

from deployments.serving.warm_up import WarmUp
from lightx2v.checkpoint import read_spec
from lightx2v.config import EngineSettings
from lightx2v.limits import Limits
from lightx2v.models import reference_image
from lightx2v.models.request import check_request
from lightx2v.pipeline import Pipeline
from lightx2v.types import GenerateRequest, Reference
from tests.checkpoints.variants import BUDGETS
from tests.parity.reference import make_with_all

TRACES = {
    **dict.fromkeys(BUDGETS, 3),
    **dict.fromkeys(("distilled", "dev", "z_base"), 5),
    **dict.fromkeys(("qwen_image", "edit_2511"), 2),
    "wan_ti2v": 4,
}
"""Kinds of blocks that differ in code, and stacks of convolutions."""


@pytest.fixture(autouse=True)
def _tiny_references(monkeypatch: pytest.MonkeyPatch, small_references: None) -> None:
    """The default size of the tiny Wan models is no size of a reference."""
    monkeypatch.setattr(reference_image, "REFERENCE_MIN_SIDE", 48)


class Noted:
    """A graph in one process. What it was asked for is noted."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.asked: list[GenerateRequest] = []

    async def generate(self, requests: Sequence[GenerateRequest], references: Sequence[Reference], _: float) -> None:
        for request in requests:
            assert request.references == tuple(reference.fitted.size for reference in references)
            self.asked.append(request)
            self._pipeline.generate(request, references)


async def rehearse(checkpoint: Path) -> list[GenerateRequest]:
    settings = EngineSettings(model=str(checkpoint), dtype="float32", device="cpu", compile=True)
    with closing(Pipeline(settings)) as pipeline:
        graph: Any = Noted(pipeline)
        warm_up = WarmUp(read_spec(settings), graph)
        warm_up.start()
        await warm_up.over()
    asked: list[GenerateRequest] = graph.asked
    return asked


@pytest.mark.parametrize("variant", BUDGETS)
async def test_blocks_are_traced_whole_and_once_and_not_for_a_user(
    variant: str, request: pytest.FixtureRequest, traced: CompileCounter, caplog: pytest.LogCaptureFixture
) -> None:
    family = request.getfixturevalue(variant)
    spec = read_spec(EngineSettings(model=str(family)))
    expected = make_with_all(family, 64, 96)
    assert traced.frame_count == 0
    asked = await rehearse(family)
    assert "warm-up" not in caplog.text
    assert traced.frame_count == TRACES[variant]
    for one in asked:
        check_request(one, spec, Limits())
    assert {len(one.references) for one in asked} == {spec.min_references, min(1, spec.max_references)}
    made = make_with_all(family, 64, 96, compile=True, cpu_offload=True)
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(made, expected, strict=True))
    assert traced.frame_count == TRACES[variant]
