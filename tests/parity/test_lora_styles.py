"""LoRAs in the styles of all trainers: each makes the same picture as its twin in diffusers' style, in every family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lightx2v.config import EngineSettings
from lightx2v.models.registry import find_family
from lightx2v.pipeline import Pipeline
from lightx2v.types import ChosenLora, GenerateRequest
from tests.checkpoints import lora, lora_styles
from tests.parity.reference import PIXELS, make_request

KINDS = ("lokr", "loha", "diff", "dora")
FAMILIES = ("distilled", "z_turbo", "qwen_image", "wan")


def build(checkpoint: Path) -> Any:
    family = find_family(checkpoint)
    return family.build("denoise", checkpoint, torch.float32, family.spec(checkpoint))


def stored(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = (checkpoint / "transformer").glob("*.safetensors")
    return {name: state.float() for file in files for name, state in load_file(file).items()}


@pytest.fixture(scope="module", params=FAMILIES)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """With a file of each style."""
    checkpoint: Path = request.getfixturevalue(request.param)
    folder, layers = tmp_path_factory.mktemp(request.param), lora_styles.layers_of(build(checkpoint))
    factors = lora_styles.low_rank(layers)
    files = {"twin": lora_styles.twin(layers, factors), "twice": lora_styles.twice(layers, factors)}
    files |= {name: style(layers, factors) for name, style in lora_styles.STYLES.items()}
    for name, tensors, twin in lora_styles.kinds(layers, stored(checkpoint)):
        files |= {name: tensors, f"{name}-twin": twin}
    loras = {name: str(lora.write(folder / f"{name}.safetensors", tensors)) for name, tensors in files.items()}
    settings = {"model": str(checkpoint), "dtype": "float32", "device": "cpu", "cpu_offload": False, "loras": loras}
    with closing(Pipeline(EngineSettings.model_validate(settings))) as made:
        yield made


def picture(pipeline: Pipeline, *names: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    request: GenerateRequest = make_request(32, 32, steps=1, loras=tuple(map(ChosenLora, names)))
    return pipeline.generate(request).pixels.astype(int)


@pytest.fixture(scope="module")
def twin(pipeline: Pipeline) -> np.ndarray[Any, np.dtype[np.int64]]:
    made = picture(pipeline, "twin")
    assert np.abs(made - picture(pipeline)).max() > 10, "or nothing was compared"
    return made


@pytest.mark.parametrize("style", [*lora_styles.STYLES, "twice"])
def test_the_same_picture(pipeline: Pipeline, twin: np.ndarray[Any, np.dtype[np.int64]], style: str) -> None:
    assert np.abs(picture(pipeline, style) - twin).max() <= PIXELS


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_picture_of_another_kind(pipeline: Pipeline, kind: str) -> None:
    made = picture(pipeline, kind)
    assert np.abs(made - picture(pipeline, f"{kind}-twin")).max() <= PIXELS
    assert np.abs(made - picture(pipeline)).max() > 10, "or nothing was compared"
