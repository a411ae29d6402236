"""The parts of a model from single files in their makers' names, over a model that has no weights of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.registry import find_family
from lightx2v.types import StageName
from lightx2v.weights.layout import make_layout, view
from lightx2v.weights.read import read_one
from lightx2v.weights.single_file import read_weights
from tests.checkpoints.makers import without_weights, write_files, write_whole
from tests.parity.reference import make_with_all

VARIANTS = ("distilled", "dev", "z_turbo", "qwen_image", "edit_2511", "wan_experts", "wan_clip", "wan_ti2v")
"""One of every architecture."""


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def built(checkpoint: Path, stage: StageName) -> Any:
    family = find_family(checkpoint)
    return family.build(stage, checkpoint, torch.float32, family.spec(checkpoint))


def loaded(component: Any, places: list[Path]) -> dict[str, torch.Tensor]:
    """Every state that a run can read."""
    layout = make_layout(component, read_weights(component, places), component.blocks)
    slabs = [(unit, read_one(unit)) for unit in (*layout.units, layout.host)]
    return {entry.name: view(slab, entry) for unit, slab in slabs for entry in unit.entries}


def same(component: Any, checkpoint: Path, places: list[Path]) -> bool:
    usual = loaded(component, [checkpoint / part for part in component.weights.folders])
    found = loaded(component, places)
    return found.keys() == usual.keys() and all(torch.equal(found[name], usual[name]) for name in usual)


def test_the_same_bits(model: Path, tmp_path: Path) -> None:
    files = write_files(model, tmp_path)
    for stage in find_family(model).stages(model):
        component = built(model, stage)
        assert same(component, model, [Path(files[part]) for part in component.weights.folders]), stage


@pytest.mark.parametrize("variant", ["dev", "wan_experts", "wan_clip"])
def test_the_same_picture(variant: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    checkpoint = request.getfixturevalue(variant)
    files = write_files(checkpoint, tmp_path / "files")
    (expected,) = make_with_all(checkpoint, 64)
    (made,) = make_with_all(without_weights(checkpoint, tmp_path / "bare"), 64, **files)
    np.testing.assert_array_equal(made.pixels, expected.pixels)


def test_one_file_for_all_parts(z_turbo: Path, tmp_path: Path) -> None:
    files = write_whole(z_turbo, tmp_path / "whole.safetensors")
    (expected,) = make_with_all(z_turbo, 64)
    (made,) = make_with_all(without_weights(z_turbo, tmp_path / "bare"), 64, **files)
    np.testing.assert_array_equal(made.pixels, expected.pixels)


def test_text_encoders_as_transformers_holds_them(model: Path, tmp_path: Path) -> None:
    """In memory their states have other names than on disk, and shared ones have two. Heads, eyes and last layers are
    there and not read."""
    folder = model / "text_encoder"
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    states = getattr(transformers, architecture).from_pretrained(folder).state_dict()
    save_file({name: state.clone() for name, state in states.items()}, tmp_path / "held.safetensors")
    encoder = built(model, "encode")
    beside = [model / part for part in encoder.weights.folders[1:]]
    assert same(encoder, model, [tmp_path / "held.safetensors", *beside])


def test_a_file_for_another_part_or_model(distilled: Path, z_turbo: Path, tmp_path: Path) -> None:
    """Nothing is made of what happens to be there."""
    stages: tuple[StageName, ...] = ("denoise", "encode", "decode")
    for part, file in write_files(z_turbo, tmp_path).items():
        for component in (built(distilled, stage) for stage in stages):
            if part != component.folder:
                with pytest.raises(InvalidCheckpoint, match=f"^{file}: this model's {component.folder} has no use for"):
                    read_weights(component, [Path(file)])
