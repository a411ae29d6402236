"""A model of two transformers on a card that holds one of them: upstream places both, and never releases the second."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pictures import asked, made
from benchmarks.server import Server, serve, under
from lightx2v.config import EngineSettings
from lightx2v.pipeline import Pipeline
from lightx2v.types import STAGES, Size
from tests.checkpoints.wan import write_wan
from tests.serve.test_second_request import watching

PROMPT = "a red circle left of a blue square on white"
SIZE = Size(48, 32)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By itself it makes small stills, so that the experts are the largest part of it."""
    folder = write_wan(tmp_path_factory.mktemp("experts"), experts=2)
    defaults = {"size": str(SIZE), "num_frames": 1, "num_inference_steps": 4}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return folder


@pytest.fixture(scope="module")
def alone(experts: Path) -> Pipeline:
    return Pipeline(EngineSettings(model=str(experts), dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def budget(alone: Pipeline) -> int:
    """Enough for any stage alone, whole and at work; too little for the two beside each other."""
    sizes = {size.stage: size for size in alone.sizes(replace(asked(PROMPT, SIZE, 0), guidance=4.0))}
    budget = max(size.reachable + size.activation_bytes for size in sizes.values()) + 200_000
    assert budget < sizes["denoise"].reachable + sizes["refine"].reachable
    return budget


@pytest.fixture(scope="module")
def tight(experts: Path, budget: int) -> Iterator[Server]:
    """All stays until another stage needs the room."""
    with serve(under(budget, experts) | {"cpu_offload": False, "max_replicas": 1}) as server:
        yield server


def test_one_gives_way_before_the_other_is_placed(tight: Server, alone: Pipeline, budget: int) -> None:
    """Request after request; the last has one step, which the first expert takes."""
    with watching(tight) as seen:
        for seed, steps in enumerate((4, 7, 4, 1)):
            answer = tight.generate(PROMPT, seed=seed, size=str(SIZE), num_inference_steps=steps, guidance_scale=1)
            assert np.array_equal(made(answer), alone.generate(asked(PROMPT, SIZE, seed, steps=steps)).pixels), seed
    card = tight.rest()
    assert seen
    for then in seen:
        held = {stage["stage"]: stage for stage in then["stages"]}
        assert held.keys() == set(STAGES)
        assert then["granted_bytes"] <= budget
        assert sum(stage["resident_bytes"] for stage in held.values()) <= budget
        assert not all(held[name]["resident_bytes"] == held[name]["reachable_bytes"] for name in ("denoise", "refine"))
    assert card["peak_granted_bytes"] <= card["budget_bytes"] == budget
    assert card["shrinks_total"] > 0
    assert card["grants_total"] == 4 * len(STAGES) - 1
    assert card["d2h_bytes_total"] == 0


def test_what_a_request_leaves_open(tight: Server, alone: Pipeline) -> None:
    """The model's own scales, one for each, and its number of steps."""
    request = replace(asked(PROMPT, SIZE, 9), guidance=4.0, refine_guidance=3.0)
    answer = tight.generate(PROMPT, seed=9, size=str(SIZE))
    assert np.array_equal(made(answer), alone.generate(request).pixels)
