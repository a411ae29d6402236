"""What Z-Image checkpoints say of themselves before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightx2v.core import GenerateRequest, Size
from lightx2v.errors import InvalidCheckpoint, InvalidRequest
from lightx2v.models.registry import find_family
from lightx2v.models.z_image.spec import ZImageSpec, read_spec


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write(tmp_path / "model_index.json", {"_class_name": "ZImagePipeline"})
    write(tmp_path / "scheduler/scheduler_config.json", {"shift": 3.0})
    write(tmp_path / "vae/config.json", {"sample_size": 1024, "block_out_channels": [128, 256, 512, 512]})
    return tmp_path


@pytest.fixture
def spec(checkpoint: Path) -> ZImageSpec:
    return read_spec(checkpoint)


def write(path: Path, values: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))


def test_turbo_takes_eight_steps_and_no_guidance(checkpoint: Path) -> None:
    expected = ZImageSpec(Size(1024, 1024), steps=8, guidance=0.0, multiple=16, shift=3.0)
    assert find_family(checkpoint).spec(checkpoint) == expected


def test_the_base_model_is_told_by_its_schedule(checkpoint: Path) -> None:
    write(checkpoint / "scheduler/scheduler_config.json", {"shift": 6.0})
    spec = read_spec(checkpoint)
    assert (spec.steps, spec.guidance, spec.shift) == (50, 4.0, 6.0)


def test_overrides(checkpoint: Path) -> None:
    write(checkpoint / "generation_config.json", {"num_inference_steps": 9, "size": "512x768"})
    assert read_spec(checkpoint) == ZImageSpec(Size(512, 768), steps=9, guidance=0.0, multiple=16, shift=3.0)


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "vae/config.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(InvalidCheckpoint, match=name):
        read_spec(checkpoint)


def test_any_scale_above_zero_guides(spec: ZImageSpec) -> None:
    guided = [spec.is_guided(GenerateRequest("unit", "", spec.size, 8, 0, scale)) for scale in (0.0, 0.1, 1.0, 4.0)]
    assert guided == [False, True, True, True]


@pytest.mark.parametrize(
    ("picture", "made"),
    [((100, 75), (96, 64)), ((1024, 1024), (1024, 1024)), ((2048, 1024), (1440, 720)), ((64, 500), (64, 496))],
)
def test_a_picture_gives_the_size(spec: ZImageSpec, picture: tuple[int, int], made: tuple[int, int]) -> None:
    assert spec.edit_size([Size(*picture)]) == Size(*made)


def test_without_a_picture_the_size_is_the_models(spec: ZImageSpec) -> None:
    assert spec.edit_size([]) == spec.size


def test_a_picture_keeps_its_size_and_is_resized_once(spec: ZImageSpec) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(spec.fit_reference(Image.fromarray(pixels))), pixels)
    assert spec.fit_reference(Image.new("L", (6000, 1500))).size == (4096, 1024)


@pytest.mark.parametrize("size", [(63, 64), (64, 640)])
def test_a_picture_that_cannot_be_used(spec: ZImageSpec, size: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest):
        spec.fit_reference(Image.new("RGB", size))
