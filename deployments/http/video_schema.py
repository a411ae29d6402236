"""The bodies of the videos API; `images` has the fields that pictures share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator

from deployments.http.errors import error_body
from deployments.http.images import GenerationBody, with_defaults
from deployments.http.jobs import Job
from deployments.http.numbers import Real, Whole
from deployments.http.synonyms import HINTS, PICTURE_NAMES
from lightx2v.errors import InvalidRequest
from lightx2v.limits import Limits
from lightx2v.models.request import check_request
from lightx2v.models.spec import ModelSpec
from lightx2v.types import GenerateRequest, Size, VideoSpec

REFERENCE = "input_reference"


def _seconds(value: object) -> float:
    """A duration in seconds; OpenAI's clients send it as a string."""
    text = str(value) if type(value) in (int, float) else value
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4})?", text) or not float(text):
        raise ValueError("must be a positive number of seconds, as in '4' or '2.5'")
    return float(text)


def _one(count: int) -> int:
    if count != 1:
        raise ValueError("a job makes one video")
    return count


class VideoRequest(GenerationBody):
    """The body of POST /v1/videos, or the text fields of its form."""

    HINTS = MappingProxyType({**HINTS, **dict.fromkeys(PICTURE_NAMES, f"a picture is sent as {REFERENCE}")})

    n: Annotated[Whole, AfterValidator(_one)] = 1
    seconds: Annotated[float | None, PlainValidator(_seconds)] = None
    num_frames: Annotated[Whole, Field(ge=1)] | None = None
    fps: Real | None = None
    guidance_scale_2: Annotated[Real, Field(ge=0, le=100)] | None = None


def check_model(spec: ModelSpec, pictures: int) -> VideoSpec:
    """The length of a model's videos. Raises InvalidRequest if it makes none, or does not take this many `pictures`."""
    if spec.video is None:
        raise InvalidRequest("model: it makes pictures only; ask for them at /v1/images/generations", "model")
    if pictures < spec.min_references:
        raise InvalidRequest(f"{REFERENCE}: this model needs a picture to begin with", REFERENCE)
    if pictures > spec.max_references:
        most = spec.max_references
        raise InvalidRequest(f"{REFERENCE}: this model takes at most {most}, got {pictures}", REFERENCE)
    return spec.video


def to_request(
    asked: VideoRequest, spec: ModelSpec, limits: Limits, references: Sequence[Size] = ()
) -> GenerateRequest:
    """The frozen request of a video. `references`: sizes of the fitted reference pictures. Raises InvalidRequest."""
    video = check_model(spec, len(references))
    if asked.fps not in (None, video.rate):
        raise InvalidRequest(f"fps: this model makes {video.rate} frames a second, got {asked.fps:g}", "fps")
    frames, refine = _frames(asked, video, limits), asked.guidance_scale_2
    request = with_defaults(asked, spec, limits, references, frames=frames, refine_guidance=refine)
    check_request(request, spec, limits)
    if request.frames == 1:
        raise InvalidRequest("num_frames: a video has more than one; /v1/images/generations makes stills", "num_frames")
    return request


def video_body(job: Job) -> dict[str, Any]:
    """OpenAI's Video object. `seed` and `num_frames` are additions: they make a video reproducible. So are
    `warnings`, what had no effect, and the position in the queue with the predicted seconds until the end."""
    return {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "status": job.status,
        "progress": job.percent,
        "created_at": int(job.created_at),
        "completed_at": int(job.ended_at) if job.ended_at is not None and job.status == "completed" else None,
        "expires_at": int(job.expires_at) if job.expires_at is not None else None,
        "size": str(job.request.size),
        "seconds": f"{job.seconds:g}",
        "prompt": job.request.prompt,
        "seed": job.request.seed,
        "num_frames": job.request.frames,
        "queue_position": job.position,
        "predicted_seconds": job.predicted_seconds,
        "warnings": [str(notice) for notice in job.notices],
        "error": error_body(job.error) if job.error else None,
        "remixed_from_video_id": None,
    }


def deleted_body(video_id: str) -> dict[str, Any]:
    """OpenAI's VideoDeleteResponse object."""
    return {"id": video_id, "object": "video.deleted", "deleted": True}


def _frames(asked: VideoRequest, video: VideoSpec, limits: Limits) -> int:
    """The number of frames asked for, or the nearest to `seconds` that the model can make."""
    if asked.seconds is None:
        return video.frames if asked.num_frames is None else asked.num_frames
    if asked.num_frames is not None:
        raise InvalidRequest("seconds: give these or num_frames, not both", "seconds")
    frames = max(1, round(asked.seconds * video.rate / video.multiple)) * video.multiple + 1
    if frames > limits.max_frames:
        longest = video.seconds_of(limits.max_frames)
        raise InvalidRequest(f"seconds: at most {longest:g} with this model, got {asked.seconds:g}", "seconds")
    return frames
