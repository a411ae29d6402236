"""What the videos API takes, refuses and answers; what it shares with pictures is tested with these."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types import Video, VideoDeleteResponse

from deployments.http.jobs import VIDEO, Jobs
from deployments.http.parsing import parse_form, parse_json
from deployments.http.video_schema import VideoRequest, check_model, deleted_body, to_request, video_body
from lightx2v.errors import InvalidRequest
from lightx2v.limits import Limits
from lightx2v.models.flux2.spec import Flux2Spec
from lightx2v.models.wan.spec import WanSpec
from lightx2v.types import GenerateRequest, Size, VideoSpec

WAN = WanSpec(Size(832, 480), 50, 5.0, 16, VideoSpec(81, 4, 16))
FLUX = Flux2Spec(distilled=True, size=Size(64, 48), steps=4, guidance=1.0, multiple=16)


def asked(**values: Any) -> VideoRequest:
    return parse_json(VideoRequest, json.dumps({"prompt": "a cat", **values}).encode())


def made(**values: Any) -> GenerateRequest:
    return to_request(asked(**values), WAN, Limits())


def test_a_prompt_is_enough() -> None:
    request = made()
    assert (request.frames, request.size, request.steps, request.guidance) == (81, Size(832, 480), 50, 5.0)


def test_every_field_is_understood_from_json_and_from_a_form() -> None:
    values = {
        "prompt": "a cat 🐈",
        "model": "wan",
        "priority": 10,
        "size": "832x480",
        "seconds": "2.5",
        "num_frames": 41,
        "seed": 2**64 - 1,
        "num_inference_steps": 8,
        "guidance_scale": 2.5,
        "negative_prompt": "dog",
        "lora": "oil",
        "lora_scale": -0.5,
        "width": 832,
        "height": 480,
        "stream": False,
        "n": 1,
        "fps": 16.0,
        "guidance_scale_2": 3.0,
        "loras": [{"name": "ink", "scale": 0.25}, {"name": "oil"}],
        "shift": 3.0,
    }
    assert set(values) == set(VideoRequest.model_fields)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    assert asked(**values) == parse_form(VideoRequest, texts)


@pytest.mark.parametrize(
    ("seconds", "frames"), [("5", 81), (5, 81), ("4", 65), (2.5, 41), ("0.01", 5), ("0.6", 9), (10, 161)]
)
def test_seconds_are_the_nearest_frames_that_the_model_makes(seconds: object, frames: int) -> None:
    assert made(seconds=seconds).frames == frames


BAD: list[tuple[str, Any]] = [
    *(("seconds", value) for value in ["", "0", "0.0", 0, -1, "-1", "1e3", "4s", "٤", "nan", True, [], "9" * 9, 1e-9]),
    *(("seconds", value) for value in ["10.2", "12", 9999]),
    *(("num_frames", value) for value in [0, -1, 1, 2, 80, 165, 10**30, "80", 81.5, True]),
    *(("size", value) for value in ["64", "100x100", "4096x4096"]),
    *(("n", value) for value in [0, 2, True]),
    *(("fps", value) for value in [24, "15.99", "fast", True]),
    *(("guidance_scale_2", value) for value in [-1, 101, True, 3.0]),
    *(("image", value) for value in ["data:,"]),
    ("strength", 0.5),
    ("response_format", "url"),
]


@pytest.mark.parametrize(("param", "value"), BAD, ids=lambda value: repr(value)[:24])
def test_a_bad_field_is_refused_by_name(param: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        made(**{param: value})
    assert caught.value.param == param


def test_fields_of_neighbours_that_change_nothing_are_taken() -> None:
    same: dict[str, Any] = {"n": 1, "fps": 16, "user": "me", "quality": "high", "metadata": {"a": "b"}, "stream": False}
    assert asked(**same).model_copy(update={"fps": None}) == asked()
    assert made(**same, seed=1, width=832, height=480).size == made().size


def test_another_rate_is_refused_with_the_models() -> None:
    with pytest.raises(InvalidRequest, match="fps: this model makes 16 frames a second, got 24"):
        made(fps="24")


def test_a_second_transformer_has_a_guidance_of_its_own() -> None:
    experts = replace(WAN, boundary=0.875, refine_guidance=3.0)

    def guidances(**values: Any) -> tuple[float, float | None]:
        request = to_request(asked(**values), experts, Limits())
        return request.guidance, request.refine_guidance

    assert guidances(guidance_scale=4, guidance_scale_2="3.5") == (4.0, 3.5)
    assert guidances(guidance_scale_2=0) == (5.0, 0.0)
    assert guidances(guidance_scale=4) == (4.0, 4.0)
    assert guidances() == (5.0, None)
    with pytest.raises(InvalidRequest, match="this model has one transformer"):
        made(guidance_scale_2=3)


def test_seconds_or_frames() -> None:
    with pytest.raises(InvalidRequest, match="not both"):
        made(seconds="5", num_frames=81)


def test_frames_is_near_to_what_it_is_called() -> None:
    with pytest.raises(InvalidRequest, match="did you mean num_frames"):
        made(frames=81)


def test_frames_and_area_together_are_bounded() -> None:
    assert made(num_frames=161, size="1280x720").frames == 161
    with pytest.raises(InvalidRequest, match="at most 71 of 1920x1088") as caught:
        made(num_frames=73, size="1920x1088")
    assert caught.value.param == "num_frames"
    assert made(num_frames=69, size="1920x1088").frames == 69


def test_a_model_of_pictures_is_refused_before_any_is_read() -> None:
    with pytest.raises(InvalidRequest, match="images/generations") as caught:
        check_model(FLUX, 1)
    assert caught.value.param == "model"


def test_a_picture_is_refused_by_a_model_that_takes_none() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_model(WAN, 1)
    assert caught.value.param == "input_reference"


def test_a_model_that_needs_a_picture_says_so_before_any_is_read() -> None:
    of_picture = replace(WAN, min_references=1, max_references=1)
    with pytest.raises(InvalidRequest, match="needs a picture") as caught:
        check_model(of_picture, 0)
    assert caught.value.param == "input_reference"
    assert check_model(of_picture, 1) == WAN.video


async def test_openai_reads_the_answers() -> None:
    async def work() -> bytes:
        return b"mp4"

    job = Jobs().start(VIDEO, "wan", made(seconds="2.5", size="720x1280", seed=3), WAN.video, work())
    await asyncio.wait([job.task])
    video = Video.model_validate(video_body(job), strict=True)
    assert (video.id, video.status, video.progress, video.seconds) == (job.id, "completed", 100, "2.5")
    assert video.model_extra == {
        "seed": 3,
        "num_frames": 41,
        "queue_position": None,
        "predicted_seconds": None,
        "warnings": [],
    }
    assert VideoDeleteResponse.model_validate(deleted_body(job.id)).deleted
