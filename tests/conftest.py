"""Tests are marked by the folder that they lie in. What several folders need is here, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from lightx2v.pipeline import Pipeline
    from tests.server import Server

ROOT = Path(__file__).parent

settings.register_profile("untimed", deadline=None)
"""A machine that is busy is slow, not wrong."""
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(item.path.relative_to(ROOT).parts[0])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model; its default size is 64x64."""
    from tests.checkpoints.flux2 import write_klein

    return write_klein(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLUX.2-dev in miniature: another language model, a transformer that is told the guidance scale, many files."""
    from tests.checkpoints.flux2 import write_dev

    return write_dev(tmp_path_factory.mktemp("dev"), max_shard_size="300KB")


@pytest.fixture(scope="session")
def oil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny model."""
    from tests.checkpoints import lora

    return lora.write(tmp_path_factory.mktemp("loras") / "oil.safetensors", lora.peft())


@pytest.fixture(scope="session")
def z_turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.checkpoints.z_image import write_z_image

    return write_z_image(tmp_path_factory.mktemp("z_turbo"))


@pytest.fixture(scope="session")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.checkpoints.flux2 import write_klein

    return write_klein(tmp_path_factory.mktemp("distilled"))


@pytest.fixture(scope="session")
def z_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In many files."""
    from tests.checkpoints.z_image import write_z_image

    return write_z_image(tmp_path_factory.mktemp("z_base"), turbo=False, max_shard_size="300KB")


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.checkpoints.wan import write_wan

    return write_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="session")
def wan_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wan 2.2: a transformer for the first steps, and one for the last."""
    from tests.checkpoints.wan import write_wan

    return write_wan(tmp_path_factory.mktemp("wan_experts"), experts=2)


@pytest.fixture(scope="session")
def wan_i2v_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wan 2.2 of a picture."""
    from tests.checkpoints.wan import write_wan_i2v

    return write_wan_i2v(tmp_path_factory.mktemp("wan_i2v_experts"), experts=2)


@pytest.fixture(scope="session")
def wan_i2v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.checkpoints.wan import write_wan_i2v

    return write_wan_i2v(tmp_path_factory.mktemp("wan_i2v"))


@pytest.fixture(scope="session")
def wan_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wan 2.1 of a picture that an image encoder sees too."""
    from tests.checkpoints.wan import write_wan_clip

    return write_wan_clip(tmp_path_factory.mktemp("wan_clip"))


@pytest.fixture(scope="session")
def wan_ti2v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.checkpoints.wan import write_wan_ti2v

    return write_wan_ti2v(tmp_path_factory.mktemp("wan_ti2v"))


@pytest.fixture(scope="session")
def qwen_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In many files."""
    from tests.checkpoints.qwen_image import write_qwen_image

    return write_qwen_image(tmp_path_factory.mktemp("qwen_image"), max_shard_size="300KB")


@pytest.fixture(scope="session")
def edit_2511(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In many files."""
    from tests.checkpoints.qwen_image import write_qwen_image_edit

    return write_qwen_image_edit(tmp_path_factory.mktemp("edit_2511"), zero_cond_t=True, max_shard_size="300KB")


@pytest.fixture
def small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit model would scale them to a million pixels."""
    from lightx2v.models.qwen_image import recipe

    monkeypatch.setattr(recipe, "REFERENCE_AREA", 96 * 96)


@pytest.fixture(scope="session")
def pipeline(checkpoint: Path) -> Pipeline:
    """That model in this process: what every served picture must equal to the bit."""
    from lightx2v.config import EngineSettings
    from lightx2v.pipeline import Pipeline

    return Pipeline(EngineSettings(model=str(checkpoint), dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def server(checkpoint: Path, oil: Path) -> Iterator[Server]:
    """One server for all tests that leave it as they found it."""
    from tests.server import serve

    arguments: dict[str, Any] = {
        "model": str(checkpoint),
        "name": "klein",
        "dtype": "float32",
        "max_queue": 8,
        "max_replicas": 1,
    }
    arguments["loras"] = {"oil": str(oil)}
    with serve(arguments) as running:
        yield running
