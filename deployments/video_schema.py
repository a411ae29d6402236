"""What the videos API takes and answers; see `schema` for what it has in common with pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from deployments.envelope import error_body
from deployments.jobs import Job
from deployments.schema import Asked, draft
from lightx2v.core import GenerateRequest, Size, VideoSpec
from lightx2v.errors import InvalidRequest
from lightx2v.limits import Limits
from lightx2v.models.request import check_request
from lightx2v.models.spec import ModelSpec

REFERENCE = "input_reference"


def _seconds(value: object) -> float:
    """OpenAI's clients send them as a string."""
    text = str(value) if type(value) in (int, float) else value
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4})?", text) or not float(text):
        raise ValueError("must be a positive number of seconds, as in '4' or '2.5'")
    return float(text)


class VideoRequest(Asked):
    """The body of POST /v1/videos, or the text fields of its form."""

    UNSUPPORTED = MappingProxyType({REFERENCE: "must be a file of a multipart form"})

    seconds: Annotated[float | None, PlainValidator(_seconds)] = None
    num_frames: Annotated[int, Field(ge=1)] | None = None


def check_model(spec: ModelSpec, pictures: int) -> VideoSpec:
    """How long the videos of a model are. Raises InvalidRequest for one that makes none, or not of so many pictures."""
    if spec.clip is None:
        raise InvalidRequest("model: it makes pictures only; ask for them at /v1/images/generations", "model")
    if pictures < spec.min_references:
        raise InvalidRequest(f"{REFERENCE}: this model needs a picture to begin with", REFERENCE)
    if pictures > spec.max_references:
        most = spec.max_references
        raise InvalidRequest(f"{REFERENCE}: this model takes at most {most}, got {pictures}", REFERENCE)
    return spec.clip


def to_request(
    asked: VideoRequest, spec: ModelSpec, limits: Limits, references: Sequence[Size] = ()
) -> GenerateRequest:
    """The frozen request of a video. `references` are the sizes of the fitted ones. Raises InvalidRequest."""
    clip = check_model(spec, len(references))
    request = draft(asked, spec, references, frames=_frames(asked, clip, limits))
    check_request(request, spec, limits)
    if request.frames == 1:
        raise InvalidRequest("num_frames: a video has more than one; /v1/images/generations makes stills", "num_frames")
    return request


def seconds_of(frames: int, clip: VideoSpec) -> float:
    """How long so many frames are shown, not counting the first, which is where time begins."""
    return (frames - 1) / clip.rate


def video_body(job: Job) -> dict[str, Any]:
    """OpenAI's Video; `seed` and `num_frames` are additions, with which it can be made again."""
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
        "seconds": f"{seconds_of(job.request.frames, job.clip):g}",
        "prompt": job.request.prompt,
        "seed": job.request.seed,
        "num_frames": job.request.frames,
        "error": error_body(job.error) if job.error else None,
        "remixed_from_video_id": None,
    }


def deleted_body(video_id: str) -> dict[str, Any]:
    """OpenAI's VideoDeleteResponse."""
    return {"id": video_id, "object": "video.deleted", "deleted": True}


def _frames(asked: VideoRequest, clip: VideoSpec, limits: Limits) -> int:
    """As many as are asked for, or the nearest to the seconds."""
    if asked.seconds is None:
        return clip.frames if asked.num_frames is None else asked.num_frames
    if asked.num_frames is not None:
        raise InvalidRequest("seconds: give these or num_frames, not both", "seconds")
    frames = max(1, round(asked.seconds * clip.rate / clip.multiple)) * clip.multiple + 1
    if frames > limits.max_frames:
        longest = seconds_of(limits.max_frames, clip)
        raise InvalidRequest(f"seconds: at most {longest:g} with this model, got {asked.seconds:g}", "seconds")
    return frames
