"""The same bits whatever is resident, and however it came there."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch._dynamo.testing import CompileCounter

from lightx2v.config import EngineSettings, LoraSettings
from lightx2v.pipeline import Pipeline
from lightx2v.types import ChosenLora
from tests.checkpoints import lora
from tests.checkpoints.variants import BUDGETS
from tests.parity.reference import make_request, make_with_all

pytestmark = pytest.mark.usefixtures("small_references")


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
    (expected,) = make_with_all(checkpoint, 64, cpu_offload=False)
    given = settings or {"gpu_budget": BUDGETS[variant]}
    (made,) = make_with_all(checkpoint, 64, **given)
    np.testing.assert_array_equal(made.pixels, expected.pixels)


def test_a_lora_is_seen_beside_compiled_blocks(distilled: Path, tmp_path: Path, traced: CompileCounter) -> None:
    loras = {"oil": LoraSettings(path=str(lora.write(tmp_path / "oil.safetensors", lora.peft())))}
    engine = EngineSettings(model=str(distilled), dtype="float32", device="cpu", loras=loras)
    made = []
    for compiles in (False, True):
        with closing(Pipeline(engine.model_copy(update={"compile": compiles}))) as pipeline:
            plain = make_request(64, 48)
            made.append(
                [pipeline.generate(one).pixels for one in (plain, replace(plain, loras=(ChosenLora("oil"),)), plain)]
            )
    (before, painted, after), compiled = made
    assert np.array_equal(before, after)
    assert not np.array_equal(before, painted)
    assert all(map(np.array_equal, made[0], compiled))
