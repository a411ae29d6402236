"""Tests are marked by the folder that they lie in. What several folders need is here, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.checkpoints.variants import BUDGETS, written

if TYPE_CHECKING:
    from benchmarks.server import Server
    from lightx2v.pipeline import Pipeline

ROOT = Path(__file__).parent

settings.register_profile("untimed", deadline=None)
"""A machine that is busy is slow, not wrong."""
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(item.path.relative_to(ROOT).parts[0])


checkpoint = written("flux2:write_klein", "klein")
"""Its default size is 64x64."""

distilled = written("flux2:write_klein", "distilled")
"""The same, for those who have another `checkpoint`."""

dev = written("flux2:write_dev", "dev", max_shard_size="300KB")
"""FLUX.2-dev in miniature: another language model, a transformer that is told the guidance scale, many files."""

z_turbo = written("z_image:write_z_image", "z_turbo")
z_base = written("z_image:write_z_image", "z_base", turbo=False, max_shard_size="300KB")
qwen_image = written("qwen_image:write_qwen_image", "qwen_image", max_shard_size="300KB")
edit_2511 = written("qwen_image:write_qwen_image_edit", "edit_2511", zero_cond_t=True, max_shard_size="300KB")
wan = written("wan:write_wan", "wan")

wan_experts = written("wan:write_wan", "wan_experts", experts=2)
"""Wan 2.2: a transformer for the first steps, and one for the last."""

wan_i2v = written("wan:write_wan_i2v", "wan_i2v")

wan_i2v_experts = written("wan:write_wan_i2v", "wan_i2v_experts", experts=2)
"""Wan 2.2 of a picture."""

wan_clip = written("wan:write_wan_clip", "wan_clip")
"""Wan 2.1 of a picture that an image encoder sees too."""

wan_ti2v = written("wan:write_wan_ti2v", "wan_ti2v")


@pytest.fixture(params=BUDGETS)
def family(request: pytest.FixtureRequest) -> Path:
    """A checkpoint of every kind."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session")
def oil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny model."""
    from tests.checkpoints import lora

    return lora.write(tmp_path_factory.mktemp("loras") / "oil.safetensors", lora.peft())


@pytest.fixture
def small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit model would scale them to a million pixels."""
    from lightx2v.models.qwen_image import spec

    monkeypatch.setattr(spec, "REFERENCE_AREA", 96 * 96)


@pytest.fixture(scope="session")
def pipeline(checkpoint: Path) -> Pipeline:
    """That model in this process: what every served picture must equal to the bit."""
    from lightx2v.config import EngineSettings
    from lightx2v.pipeline import Pipeline

    return Pipeline(EngineSettings(model=str(checkpoint), dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def server(checkpoint: Path, oil: Path) -> Iterator[Server]:
    """One server for all tests that leave it as they found it."""
    from benchmarks.server import serve

    arguments: dict[str, Any] = {
        "model": str(checkpoint),
        "name": "klein",
        "aliases": ["gpt-image-1"],
        "server": {"allowed_origins": ["https://example.com"]},
        "dtype": "float32",
        "max_queue": 8,
        "max_replicas": 1,
    }
    arguments["loras"] = {"oil": str(oil), "gone": str(oil.with_name("gone.safetensors"))}
    with serve(arguments) as running:
        yield running
