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

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from deployments.http.parsing import Body
from lightx2v.limits import SEEDS, Limits
from lightx2v.media.encode import FORMATS, PICTURE_FORMATS
from lightx2v.models.request import check_request, choose_loras, complete
from lightx2v.models.spec import ModelSpec
from lightx2v.types import ChosenLora, GenerateRequest, Size

MAX_PICTURES = 10
"""The most pictures of one request."""


def _text(text: str) -> str:
    """Refuses half a surrogate pair: JSON can spell it and pydantic accepts it, but tokenizers fail on it."""
    if re.search("[\0\ud800-\udfff]", text):
        raise ValueError("NUL and lone surrogates are not allowed")
    return text


class NamedLora(BaseModel):
    """One of `loras`: a name of the settings and a scale."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_text)]
    scale: float = 1.0


LORAS = TypeAdapter(list[NamedLora])


def _prompt(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return _text(text)


def _size(value: object) -> Size | None:
    if value == "auto":
        return None
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be WIDTHxHEIGHT in pixels, as in '1024x768', or 'auto'")
    return Size(int(match[1]), int(match[2]))


def _loras(value: object) -> tuple[ChosenLora, ...]:
    """A list of objects; in a form, its JSON."""
    try:
        read = LORAS.validate_json(value) if isinstance(value, str) else LORAS.validate_python(value)
        return tuple(ChosenLora(one.name, one.scale) for one in read)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise ValueError(f'{where} {first["msg"]}; write [{{"name": "oil", "scale": 0.8}}]'.strip()) from error


def _picture_format(name: str) -> str:
    if name not in PICTURE_FORMATS:
        raise ValueError(f"must be one of {', '.join(PICTURE_FORMATS)}")
    return name


class GenerationBody(Body):
    """The fields that requests for pictures and for videos share."""

    prompt: Annotated[str, AfterValidator(_prompt)]
    model: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_text)] | None = None
    size: Annotated[Size | None, PlainValidator(_size)] = None
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    negative_prompt: Annotated[str, AfterValidator(_text)] = ""
    lora: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_text)] | None = None
    lora_scale: float | None = None
    loras: Annotated[tuple[ChosenLora, ...] | None, PlainValidator(_loras)] = None
    shift: Annotated[float, Field(gt=0)] | None = None


class ImageRequest(GenerationBody):
    """The body of POST /v1/images/generations, and the text fields of POST /v1/images/edits."""

    IGNORED = frozenset(
        {"user", "safety_identifier", "quality", "style", "background", "moderation"}
        | {"output_compression", "input_fidelity", "partial_images"}
    )
    UNSUPPORTED = MappingProxyType({"mask": "is not supported", "stream": "is not supported"})

    n: Annotated[int, Field(ge=1, le=MAX_PICTURES)] = 1
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Annotated[str, AfterValidator(_picture_format)] = "png"
    strength: Annotated[float, Field(gt=0, le=1)] | None = None


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
        loras=choose_loras(asked.lora, asked.lora_scale, asked.loras),
        shift=asked.shift,
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
