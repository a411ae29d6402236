"""Qwen-Image from prompt to pixels against diffusers' pipeline, in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers import QwenImagePipeline

from lightx2v.types import GenerateRequest
from tests.parity.oracle_qwen_image import reference_generate
from tests.parity.reference import LATENTS, PIXELS, generate, load_reference, make_request


@pytest.fixture(scope="module")
def reference(qwen_image: Path) -> QwenImagePipeline:
    return load_reference(qwen_image)


def compare(checkpoint: Path, pipeline: QwenImagePipeline, request: GenerateRequest) -> None:
    latents, picture = generate(checkpoint, request)
    expected_latents, expected = reference_generate(pipeline, request)
    assert (latents.tokens - expected_latents).abs().max().item() <= LATENTS
    assert np.abs(picture.pixels.astype(int) - expected.astype(int)).max() <= PIXELS


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(("width", "height"), [(64, 64), (80, 48), (112, 64), (16, 160)])
def test_text_to_image(
    qwen_image: Path, reference: QwenImagePipeline, width: int, height: int, guidance: float
) -> None:
    compare(qwen_image, reference, make_request(width, height, guidance=guidance))


@pytest.mark.parametrize("steps", [2, 7, 50])
def test_steps(qwen_image: Path, reference: QwenImagePipeline, steps: int) -> None:
    compare(qwen_image, reference, make_request(steps=steps, seed=steps, guidance=2.5))


@pytest.mark.parametrize("negative_prompt", ["blurry", "a blurry picture of nothing at all in the middle of nowhere"])
def test_prompts_of_different_lengths(qwen_image: Path, reference: QwenImagePipeline, negative_prompt: str) -> None:
    compare(qwen_image, reference, make_request(96, 64, guidance=4.0, negative_prompt=negative_prompt))


def test_guidance_of_one_is_none(qwen_image: Path, reference: QwenImagePipeline) -> None:
    compare(qwen_image, reference, make_request(guidance=1.0, negative_prompt="blurry"))


@pytest.mark.parametrize("prompt", ["", "a {red} circle", "a red circle " * 300])
def test_prompts(qwen_image: Path, reference: QwenImagePipeline, prompt: str) -> None:
    """An empty one, one that a format string would stumble over, one beyond the limit."""
    compare(qwen_image, reference, make_request(prompt=prompt, guidance=4.0, negative_prompt="blurry"))
