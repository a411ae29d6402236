"""The benchmarks' checkpoints, here small: complete, sharded, and finite at every stage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.checkpoint import flux2, qwen_image, z_image
from benchmarks.checkpoint.__main__ import WRITERS
from benchmarks.checkpoint.forms import write_form
from benchmarks.checkpoint.shape import Shape
from benchmarks.pictures import asked
from lightx2v.config import EngineSettings
from lightx2v.pipeline import Pipeline
from lightx2v.types import Picture, Size
from lightx2v.weights.index import read_index

WIDTHS: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 1000,
}
CONVOLUTIONS: dict[str, Any] = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}


def klein() -> Shape:
    whole = flux2.SHAPES["klein-9b"]
    heads = {"num_attention_heads": 2, "num_layers": 1, "num_single_layers": 2, "joint_attention_dim": 192}
    return Shape(whole.transformer | heads, whole.text_encoder | WIDTHS, whole.vae | CONVOLUTIONS)


def qwen() -> Shape:
    whole = qwen_image.SHAPE
    heads = {"num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 64}
    text = WIDTHS | {"num_hidden_layers": 2, "rope_scaling": {"type": "default", "mrope_section": [4, 6, 6]}}
    return Shape(whole.transformer | heads, whole.text_encoder | text, {"base_dim": 8, "num_res_blocks": 1})


def turbo() -> Shape:
    whole = z_image.TURBO
    heads = {"dim": 256, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 64}
    return Shape(whole.transformer | heads, whole.text_encoder | WIDTHS, whole.vae | CONVOLUTIONS)


@pytest.mark.parametrize(
    ("write", "shape"),
    [(flux2.write_checkpoint, klein()), (qwen_image.write_checkpoint, qwen()), (z_image.write_checkpoint, turbo())],
    ids=["klein", "qwen-image", "z-image"],
)
def test_one_of_any_size_gives_a_picture(write: Callable[..., None], shape: Shape, tmp_path: Path) -> None:
    write(tmp_path, shape, shard_nbytes=1_000_000)
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    pipeline = Pipeline(EngineSettings(model=str(tmp_path), device="cpu"))
    first, second = (
        pipeline.latents(asked(prompt, Size(64, 48), 1)) for prompt in ("a red circle", "two blue squares")
    )
    picture = pipeline.decode(asked("", Size(64, 48), 1), first)
    pipeline.close()
    assert 0.1 < first.tokens.float().std() < 100
    assert not (first.tokens == second.tokens).all(), "the prompt has no effect"
    assert isinstance(picture, Picture)
    assert picture.size == Size(64, 48)
    assert np.std(picture.pixels) > 1


@pytest.mark.parametrize(("form", "share"), [("fp8-scaled", 0.51), ("q4_k", 0.3)])
def test_one_in_another_form_gives_a_picture(form: str, share: float, tmp_path: Path) -> None:
    """Finite, and of the bytes that such a file has."""
    flux2.write_checkpoint(tmp_path, klein(), shard_nbytes=1_000_000)
    whole = stored_bytes(tmp_path / "transformer")
    write_form(tmp_path, form)
    assert 0.25 < stored_bytes(tmp_path / "transformer") / whole < share
    with closing(Pipeline(EngineSettings(model=str(tmp_path), device="cpu"))) as pipeline:
        latents = pipeline.latents(asked("a red circle", Size(64, 48), 1))
    assert 0.1 < latents.tokens.float().std() < 100


def stored_bytes(folder: Path) -> int:
    return sum(ref.nbytes for name, ref in read_index(folder).items() if "blocks" in name)


PUBLISHED = {
    "klein-4b": (4_022_468_096, 3_875_544_576),
    "klein-9b": (8_190_735_360, 9_078_581_248),
    "qwen-image": (7_070_619_136, 20_430_401_088),
    "z-image-turbo": (4_022_468_096, 6_154_908_736),
}
"""Parameters of the text encoder, where it is not written whole without head and eyes, and of the transformer."""


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_published_sizes(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, int] = {}

    def count(parts: dict[Path, dict[str, torch.Tensor]], _: int) -> None:
        written.update({folder.name: sum(meta.numel() for meta in states.values()) for folder, states in parts.items()})

    for module in (flux2, qwen_image, z_image):
        monkeypatch.setattr(module, "write_weights", count)
    WRITERS[model](tmp_path)
    assert (written["text_encoder"], written["transformer"]) == PUBLISHED[model]


def test_the_command_knows_its_models() -> None:
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "{klein-4b,klein-9b,qwen-image,z-image-turbo}" in run.stdout
