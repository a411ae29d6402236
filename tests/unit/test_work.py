"""The work of requests, as a multiple of the planned one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightx2v.models.request import planning_request
from lightx2v.models.spec import ModelSpec
from lightx2v.models.work import stage_work, work_of
from lightx2v.types import GenerateRequest, Size, VideoSpec

SPEC = ModelSpec(Size(1024, 1024), steps=4, guidance=1.0, multiple=16, max_references=8)
PLANNED = planning_request(SPEC)
SIDES = st.integers(1, 128).map(lambda tokens: 16 * tokens)


def work(spec: ModelSpec = SPEC, **fields: object) -> float:
    return work_of([replace(planning_request(spec), **fields)], spec)  # type: ignore[arg-type]


def test_the_planned_request_is_the_unit() -> None:
    assert work() == pytest.approx(1)
    assert work_of([PLANNED] * 3, SPEC) == pytest.approx(3)
    video = replace(SPEC, video=VideoSpec(81, 4, 16))
    assert work(video) == pytest.approx(1)
    assert [stage_work(stage, PLANNED, SPEC) for stage in ("encode", "denoise", "decode")] == [1, 1, 1]


@given(SIDES, SIDES, st.integers(1, 100))
def test_work_grows_at_least_with_the_pixels_and_the_steps(width: int, height: int, steps: int) -> None:
    """What does not depend on the size is a share of the planned request."""
    ratio = width * height * steps / (1024 * 1024 * 4)
    one = work(size=Size(width, height), steps=steps)
    assert one > 0.95 * ratio * (1 if width * height >= 2**20 else 0.8)
    assert one < work(size=Size(width, height), steps=steps + 1)
    assert one < work(size=Size(width + 16, height), steps=steps)


def test_guidance_references_frames_and_strength_count() -> None:
    assert work(guidance=4.0) == pytest.approx(2, rel=0.06)
    assert work(references=(Size(1024, 1024),)) > 1.95
    started = replace(SPEC, starts_from_picture=True)
    assert work(started, references=(Size(1024, 1024),), strength=0.5) == pytest.approx(0.525)
    video = replace(SPEC, video=VideoSpec(81, 4, 16))
    assert work(video, frames=161) > 1.9


def test_a_decoder_counts_pixels_and_an_encoder_prompts() -> None:
    large = GenerateRequest("large", "a cat", Size(2048, 1024), 50, 0)
    assert stage_work("encode", large, SPEC) == 1
    assert stage_work("decode", large, SPEC) == 2
    assert stage_work("denoise", large, SPEC) > 25
