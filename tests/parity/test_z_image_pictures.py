"""Z-Image from prompt to pixels, and from picture to pixels, against diffusers' pipelines, in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline
from PIL import Image

from lightx2v.models.reference_image import make_reference
from lightx2v.models.z_image.spec import read_spec
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


def compare(checkpoint: Path, request: GenerateRequest, image: Image.Image | None = None) -> None:
    reference, images, arguments = load_reference(checkpoint), [], {}
    if image is not None:
        reference = ZImageImg2ImgPipeline(**reference.components)
        reference.set_progress_bar_config(disable=True)
        processor = reference.image_processor
        images = [processor.resize(image, request.size.height, request.size.width)]
        arguments["strength"] = request.strength
    grid, expected = reference_generate(reference, request, images, **arguments)
    expected_latents, *_ = reference.transformer._patchify_image(grid[:, None], 2, 1)
    references = [make_reference(image, read_spec(checkpoint))] if image else []
    latents, picture = generate(checkpoint, request, references)
    assert (latents.tokens - expected_latents).abs().max().item() <= LATENTS
    assert np.abs(picture.pixels.astype(int) - expected.astype(int)).max() <= PIXELS


@pytest.mark.parametrize(("width", "height"), [(64, 64), (80, 48), (128, 64), (16, 160), (272, 16)])
def test_text_to_image(z_turbo: Path, width: int, height: int) -> None:
    """Of 16, 15, 32, 10 and 17 tokens; a sequence is padded to 32."""
    compare(z_turbo, make_request(width, height, guidance=0.0))


@pytest.mark.parametrize("steps", [1, 2, 8, 20])
def test_steps(z_turbo: Path, steps: int) -> None:
    compare(z_turbo, make_request(guidance=0.0, steps=steps, seed=steps))


@pytest.mark.parametrize("negative_prompt", ["", "blurry", "blurry and grey " * 20])
def test_guidance(z_base: Path, negative_prompt: str) -> None:
    """Two captions of one padded length, and of two."""
    compare(z_base, make_request(112, 64, guidance=4.0, negative_prompt=negative_prompt))


@pytest.mark.parametrize("guidance", [0.5, 1.0])
def test_a_scale_up_to_one_guides(z_turbo: Path, guidance: float) -> None:
    compare(z_turbo, make_request(80, 80, guidance=guidance, negative_prompt="blurry"))


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_a_prompt_beyond_the_limit(z_base: Path, guidance: float) -> None:
    compare(z_base, make_request(guidance=guidance, prompt="a red circle " * 300))


@pytest.mark.parametrize("strength", [0.6, 1.0, 0.01])
def test_image_to_image(z_turbo: Path, strength: float) -> None:
    compare(z_turbo, make_request(80, 64, guidance=0.0, **start(80, 64, strength)), make_image(1, 80, 64))


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_image_to_image_resized_and_guided(z_base: Path, steps: int) -> None:
    request = make_request(64, 112, guidance=3.0, steps=steps, seed=2**63 - 1, **start(100, 75, 0.7))
    compare(z_base, request, make_image(2, 100, 75))


def test_a_picture_gives_the_default_size(z_turbo: Path) -> None:
    """The oracle's own, when it is asked for none."""
    image = make_image(3, 100, 75)
    size = read_spec(z_turbo).edit_size([Size(100, 75)])
    reference = ZImageImg2ImgPipeline(**load_reference(z_turbo).components)
    assert size == Size(*reversed(reference.image_processor.preprocess(image).shape[-2:]))


def test_strength_is_nothing_without_a_picture(z_turbo: Path) -> None:
    weak, strong = (generate(z_turbo, make_request(guidance=0.0, strength=strength))[0] for strength in (0.1, 1.0))
    assert torch.equal(weak.tokens, strong.tokens)


def start(width: int, height: int, strength: float) -> dict[str, object]:
    return {"references": (Size(width, height),), "strength": strength}
