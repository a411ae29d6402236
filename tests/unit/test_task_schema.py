"""What LightX2V's task API takes, refuses and answers; what it shares with the other routes is tested with these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deployments.http.parsing import parse, parse_form
from deployments.http.task_schema import ImageTask, TaskRequest, VideoTask, check_task, supported, to_request
from lightx2v.errors import InvalidRequest
from lightx2v.limits import Limits
from lightx2v.models.flux2.spec import Flux2Spec
from lightx2v.models.spec import ModelSpec
from lightx2v.models.wan.spec import WanSpec
from lightx2v.models.z_image.spec import ZImageSpec
from lightx2v.types import GenerateRequest, Size, VideoSpec

FLUX = Flux2Spec(distilled=False, size=Size(1024, 1024), steps=50, guidance=4.0, multiple=16)
WAN = WanSpec(Size(832, 480), 50, 5.0, 16, VideoSpec(81, 4, 16))

OFFICIAL: dict[str, Any] = {
    "prompt": "a cat",
    "negative_prompt": "",
    "infer_steps": 30,
    "seed": 42,
    "aspect_ratio": "16:9",
    "save_result_path": "",
    "use_prompt_enhancer": False,
}
"""What LightX2V's own client always sends."""


def asked(kind: type[TaskRequest] = ImageTask, **values: Any) -> TaskRequest:
    return parse(kind, supported({"prompt": "a cat", **values}))


def made(kind: type[TaskRequest] = ImageTask, references: tuple[Size, ...] = (), **values: Any) -> GenerateRequest:
    spec: ModelSpec = WAN if kind is VideoTask else FLUX
    return to_request(asked(kind, **values), spec, Limits(loras=("oil",)), references)


def test_lightx2vs_own_client_is_understood() -> None:
    request = made(**OFFICIAL)
    assert (request.size, request.steps, request.seed, request.guidance) == (Size(1360, 768), 30, 42, 4.0)
    assert asked(**OFFICIAL).warnings(0) == []


def test_lightx2vs_names_mean_those_of_the_other_routes() -> None:
    ours = made(size="96x64", num_inference_steps=4, lora="oil", lora_scale=0.5, guidance_scale=3.0, seed=1)
    theirs = made(target_shape=[64, 96], infer_steps=4, lora_name="oil", lora_strength=0.5, guidance_scale=3.0, seed=1)
    assert ours == replace(theirs, id=ours.id)


@pytest.mark.parametrize("shape", [[480, 832], "[480, 832]", "832x480"])
@pytest.mark.parametrize("name", ["size", "target_shape"])
def test_a_shape_in_brackets_has_its_height_first(name: str, shape: Any) -> None:
    fields: dict[str, Any] = {name: shape}
    assert made(**fields).size == Size(832, 480)
    if isinstance(shape, str):
        assert parse_form(ImageTask, {"prompt": "a cat", name: shape}).size == Size(832, 480)


@pytest.mark.parametrize("empty", [{"target_shape": []}, {"aspect_ratio": ""}])
def test_what_is_empty_is_absent(empty: dict[str, Any]) -> None:
    assert asked(**empty) == asked()


@pytest.mark.parametrize(("ratio", "size"), [("1:1", "1024x1024"), ("16:9", "1360x768"), ("9:16", "768x1360")])
def test_an_aspect_ratio_keeps_the_number_of_pixels(ratio: str, size: str) -> None:
    assert str(made(aspect_ratio=ratio).size) == size


def test_what_is_ignored_is_told() -> None:
    """LightX2V's order: the shape, then the picture's own for an edit, then the aspect ratio."""
    both: dict[str, Any] = {"target_shape": [64, 96], "aspect_ratio": "1:1", "save_result_path": "/tmp/cat.png"}
    assert made(**both).size == Size(96, 64)
    path, ratio = asked(**both).warnings(0)
    assert path.startswith("save_result_path is ignored")
    assert ratio.startswith("aspect_ratio is ignored: target_shape")
    assert made(aspect_ratio="1:1", references=(Size(96, 64),)).size == Size(96, 64)
    assert "shape of the picture" in asked(aspect_ratio="1:1").warnings(1)[0]


def test_a_video_has_its_length_by_either_name() -> None:
    lengths: list[dict[str, Any]] = [{"target_video_length": 9}, {"num_frames": 9}, {}]
    frames = [made(VideoTask, **length).frames for length in lengths]
    assert frames == [9, 9, 81]
    assert made(VideoTask, num_fragments=1, target_shape=[480, 832]).size == Size(832, 480)


def test_the_strength_of_an_edit() -> None:
    spec = ZImageSpec(Size(1024, 1024), 9, 0.0, 16)
    request = to_request(asked(i2i_denoise_strength=0.3), spec, Limits(), (Size(64, 64),))
    assert request.strength == 0.3


BAD: list[tuple[str, Any, str]] = [
    ("target_shape", [64], "height, width"),
    ("target_shape", [64, 96.0], "height, width"),
    ("target_shape", "[64, 9", "height, width"),
    ("target_shape", [0, 64], "height, width"),
    ("aspect_ratio", "16/9", "an aspect, as in"),
    ("aspect_ratio", "0:9", "an aspect, as in"),
    ("task", "s2v", "should be"),
    ("task_id", "mine", "chosen by the server"),
    ("presigned_url", "https://example.com", "sends nothing"),
    ("use_prompt_enhancer", True, "rewrites prompts"),
    ("target_shape", "[" * 200_000, "height, width"),
    ("audio_path", "a.wav", "no model here"),
    ("num_frames", 9, "unknown"),
    ("target_video_length", 9, "unknown"),
    ("step", 9, "did you mean num_inference_steps"),
]


@pytest.mark.parametrize(("param", "value", "message"), BAD, ids=lambda value: repr(value)[:24])
def test_a_bad_field_is_refused_by_name(param: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        made(**{param: value})
    assert caught.value.param in (param, ImageTask.SYNONYMS.get(param))


def test_two_names_of_one_field_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="not both"):
        asked(infer_steps=4, num_inference_steps=4)


def test_several_fragments_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="num_fragments: must be 1"):
        asked(VideoTask, num_fragments=2)


@pytest.mark.parametrize(("task", "pictures"), [("i2i", 0), ("t2i", 1), ("t2v", 0)])
def test_a_task_that_is_another_is_refused(task: str, pictures: int) -> None:
    with pytest.raises(InvalidRequest, match="this request is") as caught:
        check_task(asked(task=task), FLUX, pictures)
    assert caught.value.param == "task"
    check_task(asked(task="i2i" if pictures else "t2i"), FLUX, pictures)


def test_a_video_needs_a_model_of_videos() -> None:
    with pytest.raises(InvalidRequest, match="pictures only"):
        check_task(asked(VideoTask), FLUX, 0)
    check_task(asked(VideoTask, task="t2v"), WAN, 0)


@pytest.mark.parametrize(("kind", "pictures", "message"), [(ImageTask, 0, "no picture"), (VideoTask, 1, "no mask")])
def test_a_mask_belongs_to_a_picture(kind: type[TaskRequest], pictures: int, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"image_mask_path: .*{message}"):
        check_task(asked(kind), FLUX, pictures, is_masked=True)
