"""The same bits whatever is resident, and however it came there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from lightx2v.config import EngineSettings
from lightx2v.core import Picture, Video
from lightx2v.models.qwen_image import recipe as qwen_image_recipe
from lightx2v.models.recipe import make_reference
from lightx2v.models.registry import find_family
from lightx2v.pipeline import Pipeline
from tests.checkpoints import lora
from tests.parity.reference import make_image, make_request

SIZES = ((96, 64), (64, 80))
BUDGETS = {
    "distilled": 5_700_000,
    "dev": 5_700_000,
    "z_base": 6_400_000,
    "qwen_image": 5_900_000,
    "edit_2511": 14_900_000,
    "wan": 10_550_000,
    "wan_experts": 10_550_000,
    "wan_i2v": 10_550_000,
    "wan_i2v_experts": 10_550_000,
    "wan_ti2v": 10_550_000,
    "wan_clip": 10_750_000,
}
"""Too few bytes for all of a stage at once."""

KINDS = {variant: 3 if variant in ("distilled", "dev", "z_base") else 2 for variant in BUDGETS}
"""Of blocks that differ in code."""


@pytest.fixture(autouse=True)
def _small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit model would scale them to a million pixels."""
    monkeypatch.setattr(qwen_image_recipe, "REFERENCE_AREA", 96 * 96)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Runs what would be compiled as it was traced, and counts the traces: code for a GPU is tests/gpu's matter."""
    counter, compiled = CompileCounter(), torch.compile

    def trace(forward: Any, *, fullgraph: bool, dynamic: bool, options: dict[str, Any]) -> Any:
        return compiled(forward, fullgraph=fullgraph, dynamic=dynamic, backend=counter)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", trace)
    yield counter
    torch._dynamo.reset()


def make(checkpoint: Path, *heights: int, **settings: Any) -> list[Picture | Video]:
    """With guidance, frames, and as many references as the model takes, up to two, so that no part is left out."""
    recipe = find_family(checkpoint).recipe(checkpoint)
    taken = enumerate(SIZES[: recipe.max_references])
    references = [make_reference(make_image(seed, *size), recipe) for seed, size in taken]
    width, frames = (32, 9) if recipe.clip else (80, 1)
    sizes = tuple(reference.fitted.size for reference in references)
    asked = {"frames": frames, "guidance": 4.0, "negative_prompt": "grey " * 40, "references": sizes}
    requests = [make_request(width, height, **asked) for height in heights]
    engine = EngineSettings(model=str(checkpoint), dtype="float32", device="cpu", **settings)
    with closing(Pipeline(engine)) as pipeline:
        needs = [sum(size.units) + size.rest + size.workspace for size in pipeline.sizes(requests[0])]
        assert engine.gpu_budget is None or engine.gpu_budget < max(needs), "else nothing streams"
        return [pipeline.generate(request, references) for request in requests]


@pytest.mark.parametrize(
    "settings",
    [
        {"cpu_offload": True, "offload_granularity": "model"},
        {"cpu_offload": True, "offload_granularity": "block"},
        {"cpu_offload": True, "offload_granularity": "phase"},
        {"cpu_offload": True, "lazy_load": True},
        {},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "budget",
)
@pytest.mark.parametrize("variant", BUDGETS)
def test_same_bits_under_every_setting(variant: str, settings: dict[str, Any], request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(variant)
    (expected,) = make(checkpoint, 64, cpu_offload=False)
    given = settings or {"gpu_budget": BUDGETS[variant]}
    (made,) = make(checkpoint, 64, **given)
    np.testing.assert_array_equal(made.pixels, expected.pixels)


@pytest.mark.parametrize("variant", BUDGETS)
def test_blocks_are_traced_whole_and_once_for_all_sizes(
    variant: str, request: pytest.FixtureRequest, traced: CompileCounter
) -> None:
    checkpoint = request.getfixturevalue(variant)
    expected = make(checkpoint, 64, 96)
    assert traced.frame_count == 0
    made = make(checkpoint, 64, 96, compile=True, cpu_offload=True)
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(made, expected, strict=True))
    assert traced.frame_count == KINDS[variant]


def test_a_lora_is_seen_beside_compiled_blocks(distilled: Path, tmp_path: Path, traced: CompileCounter) -> None:
    loras = {"oil": str(lora.write(tmp_path / "oil.safetensors", lora.peft()))}
    engine = EngineSettings(model=str(distilled), dtype="float32", device="cpu", loras=loras)
    made = []
    for compiles in (False, True):
        with closing(Pipeline(engine.model_copy(update={"compile": compiles}))) as pipeline:
            plain = make_request(64, 48)
            made.append([pipeline.generate(one).pixels for one in (plain, replace(plain, lora="oil"), plain)])
    (before, painted, after), compiled = made
    assert np.array_equal(before, after)
    assert not np.array_equal(before, painted)
    assert all(map(np.array_equal, made[0], compiled))
