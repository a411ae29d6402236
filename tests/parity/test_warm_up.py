"""What a server rehearses, of whatever family: what its model takes, and all that a user would have to wait for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

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
from tests.parity.reference import make_with_all


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


async def test_nothing_is_traced_for_a_user(
    family: Path, traced: CompileCounter, caplog: pytest.LogCaptureFixture
) -> None:
    spec = read_spec(EngineSettings(model=str(family)))
    asked = await rehearse(family)
    assert "warm-up" not in caplog.text
    for request in asked:
        check_request(request, spec, Limits())
    assert {len(request.references) for request in asked} == {spec.min_references, min(1, spec.max_references)}
    warmed_up = traced.frame_count
    make_with_all(family, 64, 96, compile=True)
    assert traced.frame_count == warmed_up > 0
