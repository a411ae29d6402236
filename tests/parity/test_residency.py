"""The same bits whatever is resident, and however it came there."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightx2v.config import EngineSettings
from lightx2v.core import Picture, Video
from lightx2v.models.qwen_image import recipe as qwen_image_recipe
from lightx2v.models.recipe import make_reference
from lightx2v.models.registry import find_family
from lightx2v.pipeline import Pipeline
from tests.parity.reference import make_image, make_request

SIZES = ((96, 64), (64, 80))
BUDGETS = {
    "distilled": 5_700_000,
    "dev": 5_700_000,
    "z_base": 6_400_000,
    "qwen_image": 5_900_000,
    "edit_2511": 10_400_000,
    "wan": 10_550_000,
    "wan_experts": 10_550_000,
    "wan_i2v": 10_550_000,
    "wan_i2v_experts": 10_550_000,
    "wan_ti2v": 10_550_000,
    "wan_clip": 10_750_000,
}
"""Too few bytes for all of a stage at once."""


@pytest.fixture(autouse=True)
def _small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit model would scale them to a million pixels."""
    monkeypatch.setattr(qwen_image_recipe, "REFERENCE_AREA", 96 * 96)


def make(checkpoint: Path, **settings: Any) -> Picture | Video:
    """With guidance, frames, and as many references as the model takes, up to two, so that no part is left out."""
    recipe = find_family(checkpoint).recipe(checkpoint)
    taken = enumerate(SIZES[: recipe.max_references])
    references = [make_reference(make_image(seed, *size), recipe) for seed, size in taken]
    width, height, frames = (32, 64, 9) if recipe.clip else (80, 64, 1)
    sizes = tuple(reference.fitted.size for reference in references)
    request = make_request(width, height, frames=frames, guidance=4.0, negative_prompt="grey " * 40, references=sizes)
    engine = EngineSettings(model=str(checkpoint), dtype="float32", device="cpu", **settings)
    with closing(Pipeline(engine)) as pipeline:
        needs = [sum(size.units) + size.rest + size.workspace for size in pipeline.sizes(request)]
        assert engine.gpu_budget is None or engine.gpu_budget < max(needs), "else nothing streams"
        return pipeline.generate(request, references)


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
    expected = make(checkpoint, cpu_offload=False)
    given = settings or {"gpu_budget": BUDGETS[variant]}
    np.testing.assert_array_equal(make(checkpoint, **given).pixels, expected.pixels)
