"""FLUX.2 klein and dev from prompt to pixels against diffusers' pipeline, in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightx2v.models.flux2.spec import read_spec
from lightx2v.models.reference_image import make_reference
from lightx2v.types import GenerateRequest, Size
from tests.parity.reference import (
    LATENTS,
    PIXELS,
    generate,
    load_reference,
    make_image,
    make_request,
    reference_generate,
)


def compare(checkpoint: Path, request: GenerateRequest, images: Sequence[Image.Image] = ()) -> None:
    references = [make_reference(image, read_spec(checkpoint)) for image in images]
    latents, picture = generate(checkpoint, request, references)
    expected_latents, expected = reference_generate(load_reference(checkpoint), request, images)
    assert (latents.tokens - expected_latents).abs().max().item() <= LATENTS
    assert np.abs(picture.pixels.astype(int) - expected.astype(int)).max() <= PIXELS


def default_request(checkpoint: Path, width: int = 64, height: int = 64, **fields: object) -> GenerateRequest:
    return make_request(width, height, guidance=read_spec(checkpoint).guidance, **fields)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (80, 48), (112, 64), (16, 160)])
def test_text_to_image(either: Path, width: int, height: int) -> None:
    compare(either, default_request(either, width, height))


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_steps(either: Path, steps: int) -> None:
    compare(either, default_request(either, steps=steps, seed=steps))


@pytest.mark.parametrize("sizes", [[(64, 64)], [(96, 64), (64, 80)], [(100, 75), (64, 64), (72, 130)]])
def test_references(either: Path, sizes: list[tuple[int, int]]) -> None:
    images = [make_image(seed, *size) for seed, size in enumerate(sizes)]
    compare(either, default_request(either, 80, 64, references=_fitted(either, images)), images)


def test_a_distilled_model_takes_no_guidance(distilled: Path) -> None:
    compare(distilled, make_request(guidance=4.0))


@pytest.mark.parametrize("negative_prompt", ["", "blurry"])
def test_guidance(base: Path, negative_prompt: str) -> None:
    compare(base, make_request(96, 64, guidance=4.0, negative_prompt=negative_prompt))


def test_guidance_of_one_is_none(base: Path) -> None:
    compare(base, make_request(guidance=1.0, negative_prompt="blurry"))


def test_guidance_with_references(base: Path) -> None:
    images = [make_image(1, 80, 64)]
    compare(base, make_request(64, 64, guidance=2.5, references=_fitted(base, images)), images)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5, 30.0])
def test_embedded_guidance(dev: Path, guidance: float) -> None:
    compare(dev, make_request(80, 48, guidance=guidance))


def test_embedded_guidance_takes_no_negative_prompt(dev: Path) -> None:
    plain, blurry = (make_request(guidance=4.0, negative_prompt=words) for words in ("", "blurry"))
    assert torch.equal(generate(dev, plain)[0].tokens, generate(dev, blurry)[0].tokens)


def test_a_prompt_beyond_the_limit(either: Path) -> None:
    compare(either, default_request(either, prompt="a red circle " * 300))


def _fitted(checkpoint: Path, images: Sequence[Image.Image]) -> tuple[Size, ...]:
    spec = read_spec(checkpoint)
    return tuple(Size(*spec.fit_reference(image).size) for image in images)
