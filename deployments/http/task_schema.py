"""The bodies of LightX2V's task API, by its names; `images` and `video_schema` have the fields behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator

from deployments.http.errors import error_body
from deployments.http.images import GenerationBody, picture_size, with_defaults
from deployments.http.jobs import Job
from deployments.http.numbers import Real, Whole
from deployments.http.synonyms import SYNONYMS
from deployments.http.uploads import UploadNames
from deployments.http.video_schema import VideoRequest, check_model
from deployments.http.video_schema import to_request as to_video_request
from lightx2v.errors import Cancelled, InvalidRequest
from lightx2v.limits import Limits
from lightx2v.models.request import check_request
from lightx2v.models.spec import ModelSpec
from lightx2v.sizes import Aspect, parse_size
from lightx2v.types import GenerateRequest, Size

PICTURES = UploadNames(("image_path", "image_file"), "image_mask_path")
"""The names of pictures: in JSON, and of a form's files; and of a mask in either."""
STATUS = MappingProxyType(
    {"queued": "pending", "in_progress": "processing", "completed": "completed", "failed": "failed"}
)
"""LightX2V's names of a job's states; a cancelled one has a name of its own."""
UNKNOWN_MODELS = (
    *("audio_path", "video_path", "video_duration", "talk_objects", "sr_ratio", "target_short_edge", "resize_mode"),
    *("fixed_area", "src_video", "src_mask", "src_ref_images", "ref_image_paths", "reuse_prefix_segments"),
    *("inpaint_blur_sigma", "inpaint_blur_size", "layout_bboxes", "keep_aspect_ratio", "match_target_size"),
)
"""LightX2V's fields that only models read which are not served here."""
UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "task_id": "is chosen by the server, because the id is the task's only credential",
        "presigned_url": "is not supported: the server sends nothing to other hosts; fetch /v1/tasks/{id}/result",
        "use_prompt_enhancer": "is not supported: there is no model that rewrites prompts",
        "reuse": "is not needed: a prompt that comes again is not encoded again",
        "last_frame_path": "is not supported: no model here takes a last frame",
        "target_fps": "is not supported: a video has the frame rate of its model",
        **dict.fromkeys(UNKNOWN_MODELS, "is not supported: no model here reads it"),
    }
)
"""LightX2V's fields that are refused unless they are `false` or empty, with the reason."""


def _shape(value: object) -> Size | Aspect | None:
    """A size as LightX2V writes it, [height, width] in pixels, or as the other routes do."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("must be [height, width] in pixels, as in [768, 1024]") from None
    if not isinstance(value, list):
        return picture_size(value)
    if value and (len(value) != 2 or any(type(side) is not int or not 0 < side < 10**6 for side in value)):
        raise ValueError("must be [height, width] in pixels, as in [768, 1024]")
    return Size(value[1], value[0]) if value else None


def _ratio(value: object) -> Aspect | None:
    """Width to height; None for an empty text, as LightX2V's clients send it."""
    if value == "":
        return None
    aspect = parse_size(value) if isinstance(value, str) else None
    if not isinstance(aspect, Aspect):
        raise ValueError("must be WIDTH:HEIGHT, as in '16:9'")
    return aspect


class TaskRequest(GenerationBody):
    """The fields that tasks for pictures and for videos share. LightX2V's names stand beside those of the other
    routes."""

    SYNONYMS = MappingProxyType(
        {
            **SYNONYMS,
            "infer_steps": "num_inference_steps",
            "target_shape": "size",
            "lora_name": "lora",
            "lora_strength": "lora_scale",
            "i2i_denoise_strength": "strength",
            "target_video_length": "num_frames",
        }
    )

    size: Annotated[Size | Aspect | None, PlainValidator(_shape)] = None
    aspect_ratio: Annotated[Aspect | None, PlainValidator(_ratio)] = None
    task: Literal["t2i", "i2i", "t2v", "i2v"] | None = None
    save_result_path: str = ""

    def warnings(self, references: int) -> list[str]:
        """What is not done with this request and its number of `references`, a sentence each."""
        told = []
        if self.save_result_path:
            told.append("save_result_path is ignored: the server writes no files; fetch /v1/tasks/{id}/result")
        if self.aspect_ratio and self.size:
            told.append("aspect_ratio is ignored: target_shape says the size")
        elif self.aspect_ratio and references:
            told.append("aspect_ratio is ignored: the result has the shape of the picture; target_shape sets another")
        return told


class ImageTask(TaskRequest):
    """The body of POST /v1/tasks/image/, or the text fields of its form."""

    strength: Annotated[Real, Field(gt=0, le=1)] | None = None


def _one_fragment(count: int) -> int:
    if count != 1:
        raise ValueError("must be 1: no model here joins several")
    return count


class VideoTask(TaskRequest, VideoRequest):
    """The body of POST /v1/tasks/video/, or the text fields of its form."""

    num_fragments: Annotated[Whole, AfterValidator(_one_fragment)] = 1


def supported(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without the UNSUPPORTED ones that say nothing. Raises InvalidRequest for one that does."""
    for key in fields.keys() & UNSUPPORTED.keys():
        if fields[key] not in (False, "false", "", []):
            raise InvalidRequest(f"{key} {UNSUPPORTED[key]}", key)
    return {key: value for key, value in fields.items() if key not in UNSUPPORTED}


def check_task(asked: TaskRequest, spec: ModelSpec, pictures: int, *, is_masked: bool = False) -> None:
    """Raises InvalidRequest if the task or the model does not fit this body with this many `pictures`, the first of
    them with a mask if the request `is_masked`."""
    if is_masked and not pictures:
        raise InvalidRequest(f"{PICTURES.mask}: there is no picture that it belongs to", PICTURES.mask)
    if isinstance(asked, VideoTask):
        if is_masked:
            raise InvalidRequest(f"{PICTURES.mask}: videos take no mask", PICTURES.mask)
        check_model(spec, pictures)
    made = f"{'i' if pictures else 't'}2{'v' if isinstance(asked, VideoTask) else 'i'}"
    if asked.task not in (None, made):
        raise InvalidRequest(f"task: this request is {made}, got {asked.task!r}", "task")


def to_request(
    asked: TaskRequest, spec: ModelSpec, limits: Limits, references: Sequence[Size], *, is_masked: bool = False
) -> GenerateRequest:
    """The frozen request of a task. `references`: sizes of the fitted pictures; `is_masked`: whether the first one has
    a mask. Raises InvalidRequest."""
    if asked.size is None and asked.aspect_ratio is not None and not references:
        asked = asked.model_copy(update={"size": asked.aspect_ratio})
    if isinstance(asked, VideoTask):
        return to_video_request(asked, spec, limits, references)
    strength = asked.strength if isinstance(asked, ImageTask) else None
    request = with_defaults(asked, spec, limits, references, strength=strength, frames=1, is_masked=is_masked)
    check_request(request, spec, limits)
    return request


def created_body(job: Job, warnings: Sequence[str]) -> dict[str, Any]:
    """LightX2V's TaskResponse. `seed` and `warnings` are additions."""
    return {
        "task_id": job.id,
        "task_status": task_status(job),
        "save_result_path": None,
        "seed": job.request.seed,
        "warnings": list(warnings),
    }


def status_body(job: Job) -> dict[str, Any]:
    """LightX2V's status of a task. `progress` in percent, the place in the queue and `seed` are additions."""
    error = error_body(job.error) if job.error else {"message": None, "code": None}
    return {
        "task_id": job.id,
        "status": task_status(job),
        "start_time": _time(job.created_at),
        "end_time": None if job.ended_at is None else _time(job.ended_at),
        "error": error["message"],
        "error_type": error["code"],
        "save_result_path": None,
        "progress": job.percent,
        "queue_position": job.position,
        "predicted_seconds": job.predicted_seconds,
        "seed": job.request.seed,
    }


def task_status(job: Job) -> str:
    """LightX2V's name of a job's state."""
    return "cancelled" if isinstance(job.error, Cancelled) else STATUS[job.status]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
