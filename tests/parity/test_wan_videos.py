"""Wan from prompt to pixels against diffusers' pipeline, in fp32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline, WanImageToVideoPipeline, WanPipeline
from PIL import Image

from lightx2v.config import EngineSettings
from lightx2v.models.reference_image import make_reference
from lightx2v.models.request import planning_request
from lightx2v.models.wan.schedule import Schedule
from lightx2v.models.wan.spec import read_spec
from lightx2v.pipeline import Pipeline
from lightx2v.types import GenerateRequest, Size, Video
from tests.parity.oracle_wan import reference_generate
from tests.parity.reference import LATENTS, PIXELS, generate, load_reference, make_image, make_request


@pytest.fixture(scope="module")
def oracle(wan: Path) -> WanPipeline:
    return load_reference(wan)


@pytest.fixture(scope="module")
def i2v_oracle(wan_i2v: Path) -> WanImageToVideoPipeline:
    return load_reference(wan_i2v)


@pytest.fixture(scope="module")
def ti2v_oracle(wan_ti2v: Path) -> WanPipeline:
    return load_reference(wan_ti2v)


def compare(
    checkpoint: Path, oracle: DiffusionPipeline, request: GenerateRequest, image: Image.Image | None = None
) -> None:
    references = [] if image is None else [make_reference(image, read_spec(checkpoint))]
    request = replace(request, references=tuple(reference.fitted.size for reference in references))
    latents, made = generate(checkpoint, request, references)
    expected_latents, expected = reference_generate(oracle, request, image)
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


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("frames", [1, 9, 17])
def test_picture_to_video(wan_i2v: Path, i2v_oracle: WanImageToVideoPipeline, frames: int, guidance: float) -> None:
    request = make_request(64, 48, frames=frames, guidance=guidance)
    compare(wan_i2v, i2v_oracle, request, make_image(1, 80, 64))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (100, 75), (200, 90)])
def test_pictures_of_any_size(wan_i2v: Path, i2v_oracle: WanImageToVideoPipeline, width: int, height: int) -> None:
    request = make_request(48, 80, frames=5, guidance=3.5, negative_prompt="blurry")
    compare(wan_i2v, i2v_oracle, request, make_image(2, width, height))


@pytest.fixture(scope="module")
def clip_oracle(wan_clip: Path) -> WanImageToVideoPipeline:
    return load_reference(wan_clip)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(("width", "height"), [(80, 64), (300, 200), (100, 330)])
def test_a_picture_that_an_encoder_sees(
    wan_clip: Path, clip_oracle: WanImageToVideoPipeline, width: int, height: int, guidance: float
) -> None:
    request = make_request(64, 48, frames=9, guidance=guidance)
    compare(wan_clip, clip_oracle, request, make_image(5, width, height))


@pytest.fixture(scope="module")
def i2v_experts_oracle(wan_i2v_experts: Path) -> WanImageToVideoPipeline:
    return load_reference(wan_i2v_experts)


@pytest.mark.parametrize(("steps", "first"), [(1, 1), (2, 1), (4, 2), (7, 2)])
def test_a_picture_for_two_transformers(
    wan_i2v_experts: Path, i2v_experts_oracle: WanImageToVideoPipeline, steps: int, first: int
) -> None:
    """Each of the two sees it."""
    assert Schedule(wan_i2v_experts, read_spec(wan_i2v_experts)).high(steps) == first
    request = make_request(64, 48, frames=9, steps=steps, guidance=5.0, refine_guidance=2.0)
    compare(wan_i2v_experts, i2v_experts_oracle, request, make_image(4, 100, 75))


@pytest.mark.parametrize("frames", [1, 9])
def test_an_expanded_timestep(wan_ti2v: Path, ti2v_oracle: WanPipeline, frames: int) -> None:
    compare(wan_ti2v, ti2v_oracle, make_request(96, 64, frames=frames, guidance=5.0))


@pytest.mark.parametrize(("frames", "guidance"), [(1, 1.0), (5, 1.0), (9, 5.0), (17, 5.0)])
def test_a_first_frame(wan_ti2v: Path, ti2v_oracle: WanPipeline, frames: int, guidance: float) -> None:
    of_pictures = WanImageToVideoPipeline(**ti2v_oracle.components, expand_timesteps=True)
    of_pictures.set_progress_bar_config(disable=True)
    request = make_request(96, 64, frames=frames, guidance=guidance)
    compare(wan_ti2v, of_pictures, request, make_image(3, 100, 75))


def test_the_plan_is_for_what_must_be_given(wan_i2v: Path, wan_ti2v: Path) -> None:
    assert planning_request(read_spec(wan_i2v)).references == (Size(64, 48),)
    assert planning_request(read_spec(wan_ti2v)).references == ()


def test_one_frame_is_a_picture_and_more_are_a_video(wan: Path) -> None:
    picture, video = (generate(wan, make_request(32, 32, frames=frames, steps=1))[1] for frames in (1, 5))
    assert picture.pixels.shape == (32, 32, 3)
    assert isinstance(video, Video)
    assert (video.pixels.shape, video.rate) == ((5, 32, 32, 3), 16)


def test_requests_leave_nothing_behind(wan: Path) -> None:
    """Neither the solver's history nor the decoder's memory of frames."""
    pipeline = Pipeline(EngineSettings(model=str(wan), dtype="float32", device="cpu"))
    request, other = make_request(32, 32, frames=9, guidance=5.0), make_request(48, 32, frames=5, seed=1)
    first = pipeline.generate(request).pixels
    pipeline.generate(other)
    assert np.array_equal(pipeline.generate(request).pixels, first)
    pipeline.close()
