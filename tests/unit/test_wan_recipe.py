"""What Wan's checkpoints say of themselves before any weight is read, and what may be asked of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lightx2v.core import Clip, GenerateRequest, Size
from lightx2v.errors import InvalidCheckpoint, InvalidRequest
from lightx2v.limits import Limits
from lightx2v.models.registry import find_family
from lightx2v.models.wan.recipe import WanRecipe, read_recipe

RECIPE = WanRecipe(Size(832, 480), 50, 5.0, 16, Clip(81, 4, 16))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write(tmp_path, "model_index.json", _class_name="WanPipeline", boundary_ratio=None, expand_timesteps=False)
    write(tmp_path, "transformer/config.json", patch_size=[1, 2, 2])
    write(tmp_path, "vae/config.json", z_dim=16)
    return tmp_path


def write(checkpoint: Path, name: str, **values: object) -> None:
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_text(json.dumps(values))


def asked(frames: int) -> GenerateRequest:
    return GenerateRequest("unit", "a cat", RECIPE.size, 4, 0, frames=frames)


def test_the_defaults(checkpoint: Path) -> None:
    assert find_family(checkpoint).name == "wan"
    assert read_recipe(checkpoint) == RECIPE


def test_overrides(checkpoint: Path) -> None:
    write(checkpoint, "generation_config.json", size="64x48", num_frames=9, num_inference_steps=4)
    assert read_recipe(checkpoint) == WanRecipe(Size(64, 48), 4, 5.0, 16, Clip(9, 4, 16))


@pytest.mark.parametrize("frames", [0, -3, 8, 9.0, "9", None, True])
def test_overrides_that_cannot_be(checkpoint: Path, frames: object) -> None:
    write(checkpoint, "generation_config.json", num_frames=frames)
    with pytest.raises(InvalidCheckpoint, match=r"generation_config\.json: num_frames"):
        read_recipe(checkpoint)


@pytest.mark.parametrize("variant", [{"boundary_ratio": 0.875}, {"expand_timesteps": True}])
def test_other_wans_are_refused(checkpoint: Path, variant: dict[str, object]) -> None:
    write(checkpoint, "model_index.json", _class_name="WanPipeline", **variant)
    with pytest.raises(InvalidCheckpoint, match=next(iter(variant))):
        read_recipe(checkpoint)


def test_no_references(checkpoint: Path) -> None:
    with pytest.raises(InvalidRequest, match="text alone"):
        read_recipe(checkpoint).fit_reference(Image.new("RGB", (64, 64)))


@pytest.mark.parametrize("frames", [1, 5, 81, 161])
def test_frames_that_can_be_asked_for(frames: int) -> None:
    Limits().check(asked(frames), RECIPE.multiple, RECIPE.clip)


@pytest.mark.parametrize("frames", [-3, 0, 2, 4, 80, 165, 10**9 + 1])
def test_frames_that_cannot_be_asked_for(frames: int) -> None:
    with pytest.raises(InvalidRequest, match="num_frames") as caught:
        Limits().check(asked(frames), RECIPE.multiple, RECIPE.clip)
    assert caught.value.param == "num_frames"


@pytest.mark.parametrize("frames", [0, 5])
def test_other_families_make_pictures_only(frames: int) -> None:
    with pytest.raises(InvalidRequest, match="num_frames"):
        Limits().check(asked(frames), 16)
