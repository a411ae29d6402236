"""The bodies of the images API. A request is checked in full before anything is queued for it.

`ImageRequest` holds the limits of every model. `to_requests` applies those of the deployment (`Limits`) and of the
model (`ModelSpec`).
"""

from __future__ import annotations

import re
import uuid
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator

from deployments.http.numbers import Real, Whole, whole
from deployments.http.parsing import Body
from lightx2v.limits import RANDOM, SEEDS, Limits
from lightx2v.media.encode import FORMATS, PICTURE_FORMATS
from lightx2v.models.request import check_request, complete
from lightx2v.models.spec import ModelSpec
from lightx2v.types import GenerateRequest, Size

MAX_PICTURES = 10
"""The most pictures of one request."""


def _text(text: str) -> str:
    """Refuses half a surrogate pair: JSON can spell it and pydantic accepts it, but tokenizers fail on it."""
    if re.search("[\0\ud800-\udfff]", text):
        raise ValueError("NUL and lone surrogates are not allowed")
    return text


def _prompt(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return _text(text)


def picture_size(value: object) -> Size | None:
    """A size as OpenAI writes it; None for "auto". Raises ValueError."""
    if value == "auto":
        return None
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be WIDTHxHEIGHT in pixels, as in '1024x768', or 'auto'")
    return Size(int(match[1]), int(match[2]))


def _seed(value: object) -> int | None:
    """A seed, or None for a random one."""
    seed = whole(value)
    if seed == RANDOM:
        return None
    if not 0 <= seed < SEEDS:
        raise ValueError(f"must be from 0 to {SEEDS - 1}, or {RANDOM} for a random one")
    return seed


def _picture_format(name: str) -> str:
    if name not in PICTURE_FORMATS:
        raise ValueError(f"must be one of {', '.join(PICTURE_FORMATS)}")
    return name


class GenerationBody(Body):
    """The fields that requests for pictures and for videos share."""

    prompt: Annotated[str, AfterValidator(_prompt)]
    model: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_text)] | None = None
    size: Annotated[Size | None, PlainValidator(picture_size)] = None
    seed: Annotated[int | None, PlainValidator(_seed)] = None
    num_inference_steps: Annotated[Whole, Field(ge=1)] | None = None
    guidance_scale: Annotated[Real, Field(ge=0, le=100)] | None = None
    negative_prompt: Annotated[str, AfterValidator(_text)] = ""
    lora: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_text)] | None = None
    lora_scale: Real = 1.0


class ImageRequest(GenerationBody):
    """The body of POST /v1/images/generations, and the text fields of POST /v1/images/edits."""

    IGNORED = frozenset(
        {"user", "safety_identifier", "quality", "style", "background", "moderation"}
        | {"output_compression", "input_fidelity", "partial_images"}
    )
    UNSUPPORTED = MappingProxyType({"mask": "is not supported", "stream": "is not supported"})

    n: Annotated[Whole, Field(ge=1, le=MAX_PICTURES)] = 1
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Annotated[str, AfterValidator(_picture_format)] = "png"
    strength: Annotated[Real, Field(gt=0, le=1)] | None = None


def with_defaults(asked: GenerationBody, spec: ModelSpec, references: Sequence[Size], **fields: Any) -> GenerateRequest:
    """The request with the model's defaults where nothing was asked; not checked yet. `references`: sizes of the fitted
    reference pictures. `fields`: those that only pictures or only videos have."""
    return complete(
        asked.prompt,
        spec,
        references,
        size=asked.size,
        steps=asked.num_inference_steps,
        seed=asked.seed,
        guidance=asked.guidance_scale,
        negative_prompt=asked.negative_prompt,
        lora=asked.lora,
        lora_scale=asked.lora_scale,
        **fields,
    )


def to_requests(
    asked: ImageRequest, spec: ModelSpec, limits: Limits, references: Sequence[Size] = ()
) -> tuple[GenerateRequest, ...]:
    """One frozen request per picture, with consecutive seeds. `references`: sizes of the fitted reference pictures.
    Raises InvalidRequest."""
    first = with_defaults(asked, spec, references, strength=asked.strength, frames=1)
    check_request(first, spec, limits)
    seeds = ((first.seed + index) % SEEDS for index in range(asked.n))
    return tuple(replace(first, id=str(uuid.uuid4()), seed=seed) for seed in seeds)


def images_body(
    request: ImageRequest, made: Sequence[GenerateRequest], pictures: Sequence[bytes], created: int
) -> bytes:
    """OpenAI's ImagesResponse in JSON. `seed` is an addition: it makes a picture reproducible.

    It is written by hand: nothing needs escaping, and a serialiser would scan and copy all of the base64 again.
    """
    return b"".join(_images_body(request, made, pictures, created))


def _images_body(
    request: ImageRequest, made: Sequence[GenerateRequest], pictures: Sequence[bytes], created: int
) -> Iterator[bytes]:
    kind, size = request.output_format.encode(), str(made[0].size).encode()
    media_type = FORMATS[request.output_format].media_type.encode()
    key, prefix = (b"url", b"data:%b;base64," % media_type) if request.response_format == "url" else (b"b64_json", b"")
    yield b'{"created":%d,"output_format":"%b","size":"%b","data":[' % (created, kind, size)
    for index, (one, data) in enumerate(zip(made, pictures, strict=True)):
        yield b'%b{"seed":%d,"%b":"%b' % (b"," if index else b"", one.seed, key, prefix)
        yield b64encode(data)
        yield b'"}'
    yield b"]}"


def models_body(names: Iterable[str], created: int) -> dict[str, Any]:
    """The answer to GET /v1/models."""
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": created, "owned_by": "lightx2v"} for name in names],
    }
