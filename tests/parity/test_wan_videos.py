"""Wan from prompt to pixels against diffusers' pipeline, in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers import WanPipeline

from lightx2v.core import GenerateRequest, Video
from tests.parity.oracle_wan import reference_generate
from tests.parity.reference import LATENTS, PIXELS, generate, load_reference, make_request


@pytest.fixture(scope="module")
def oracle(wan: Path) -> WanPipeline:
    return load_reference(wan)


def compare(checkpoint: Path, oracle: WanPipeline, request: GenerateRequest) -> None:
    latents, made = generate(checkpoint, request)
    expected_latents, expected = reference_generate(oracle, request)
    assert latents.frames == (request.frames - 1) // 4 + 1
    assert (latents.tokens - expected_latents).abs().max().item() <= LATENTS
    assert np.abs(made.pixels / 255 - expected).max() <= (PIXELS + 0.5) / 255
    assert made.size == request.size


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("frames", [1, 9, 17])
def test_text_to_video(wan: Path, oracle: WanPipeline, frames: int, guidance: float) -> None:
    compare(wan, oracle, make_request(64, 48, frames=frames, guidance=guidance))


@pytest.mark.parametrize(("width", "height"), [(48, 80), (16, 16)])
def test_sizes(wan: Path, oracle: WanPipeline, width: int, height: int) -> None:
    compare(wan, oracle, make_request(width, height, frames=5, guidance=5.0))


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_steps(wan: Path, oracle: WanPipeline, steps: int) -> None:
    compare(wan, oracle, make_request(32, 32, frames=5, steps=steps, seed=steps, guidance=5.0))


def test_negative_prompt(wan: Path, oracle: WanPipeline) -> None:
    compare(wan, oracle, make_request(48, 32, frames=5, guidance=3.5, negative_prompt="blurry &amp; white"))


def test_a_prompt_beyond_the_limit(wan: Path, oracle: WanPipeline) -> None:
    compare(wan, oracle, make_request(32, 32, frames=5, prompt="a red circle " * 300))


def test_one_frame_is_a_picture_and_more_are_a_video(wan: Path) -> None:
    picture, video = (generate(wan, make_request(32, 32, frames=frames, steps=1))[1] for frames in (1, 5))
    assert picture.pixels.shape == (32, 32, 3)
    assert isinstance(video, Video)
    assert (video.pixels.shape, video.rate) == ((5, 32, 32, 3), 16)


def test_requests_leave_nothing_behind(wan: Path) -> None:
    """Neither the solver's history nor the decoder's memory of frames."""
    from lightx2v.config import EngineSettings
    from lightx2v.pipeline import Pipeline

    pipeline = Pipeline(EngineSettings(model=str(wan), dtype="float32", device="cpu"))
    request, other = make_request(32, 32, frames=9, guidance=5.0), make_request(48, 32, frames=5, seed=1)
    first = pipeline.generate(request).pixels
    pipeline.generate(other)
    assert np.array_equal(pipeline.generate(request).pixels, first)
    pipeline.close()
