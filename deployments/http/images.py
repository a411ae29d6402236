"""The bodies of the images API. A request is checked in full before anything is queued for it.

`ImageRequest` holds the limits of every model. `to_requests` applies those of the deployment (`Limits`) and of the
model (`ModelSpec`).
"""

from __future__ import annotations

import json
import re
import uuid
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)

from deployments.http.askers import HIGHEST
from deployments.http.numbers import Real, Whole, whole
from deployments.http.parsing import Body
from deployments.http.synonyms import HINTS, PICTURE_NAMES
from lightx2v.errors import InvalidRequest
from lightx2v.limits import RANDOM, SEEDS, Limits
from lightx2v.media.encode import PICTURE_FORMATS
from lightx2v.models.request import check_request, choose_loras, choose_size, complete
from lightx2v.models.spec import ModelSpec
from lightx2v.sizes import Aspect, parse_size
from lightx2v.types import ChosenLora, GenerateRequest, Size

MAX_PICTURES = 10
"""The most pictures of one request."""
MAX_LORAS, MAX_LORA_KEYS = 64, 16
"""Bounds of the work to read `loras`; requests are allowed fewer."""


def _text(text: str) -> str:
    """Refuses half a surrogate pair: JSON can spell it and pydantic accepts it, but tokenizers fail on it."""
    if re.search("[\0\ud800-\udfff]", text):
        raise ValueError("NUL and lone surrogates are not allowed")
    return text


class NamedLora(BaseModel):
    """One of `loras`: a name of the settings and a scale."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_text)]
    scale: Real = 1.0


def _short(entry: object) -> object:
    """Refuses an object of many keys, which pydantic would describe one by one."""
    if isinstance(entry, dict) and len(entry) > MAX_LORA_KEYS:
        raise ValueError(f"has more than {MAX_LORA_KEYS} keys")
    return entry


LORAS = TypeAdapter(
    Annotated[list[Annotated[NamedLora, BeforeValidator(_short)]], FailFast(), Field(max_length=MAX_LORAS)]
)


def _prompt(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return _text(text)


def picture_size(value: object) -> Size | Aspect | None:
    """A size, an aspect, or None for the model's own size. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("must be a text such as '1024x768'")
    return None if value.strip() in ("", "auto") else parse_size(value)


def _seed(value: object) -> int:
    """A seed, or RANDOM."""
    seed = whole(value)
    if seed != RANDOM and not 0 <= seed < SEEDS:
        raise ValueError(f"must be from 0 to {SEEDS - 1}, or {RANDOM} for a random one")
    return seed


def _loras(value: object) -> tuple[ChosenLora, ...]:
    """A list of objects; in a form, its JSON."""
    try:
        read = LORAS.validate_json(value) if isinstance(value, str) else LORAS.validate_python(value)
        return tuple(ChosenLora(one.name, one.scale) for one in read)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f'{where} {message}; write [{{"name": "oil", "scale": 0.8}}]'.strip()) from error


def _picture_format(name: str) -> str:
    name = "jpeg" if name == "jpg" else name
    if name not in PICTURE_FORMATS:
        raise ValueError(f"must be one of {', '.join(PICTURE_FORMATS)}")
    return name


def _whole_answer(value: object) -> Literal[False]:
    """Refuses a stream; false has many spellings in forms."""
    if str(value).strip().lower() not in ("false", "0", "no", "off", ""):
        raise ValueError("answers are not streamed; leave it out or send false")
    return False


def _opaque(value: object) -> None:
    """Refuses a transparent background; every other one means nothing to an open model."""
    if isinstance(value, str) and value.strip().lower() == "transparent":
        raise ValueError("pictures are opaque; leave it out or send 'opaque'")


class GenerationBody(Body):
    """The fields that requests for pictures and for videos share."""

    IGNORED = frozenset({"user", "safety_identifier", "quality", "metadata"})

    prompt: Annotated[str, AfterValidator(_prompt)]
    model: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_text)] | None = None
    size: Annotated[Size | Aspect | None, PlainValidator(picture_size)] = None
    width: Annotated[Whole, Field(ge=1, le=999_999)] | None = None
    height: Annotated[Whole, Field(ge=1, le=999_999)] | None = None
    seed: Annotated[int, PlainValidator(_seed)] | None = None
    num_inference_steps: Annotated[Whole, Field(ge=1)] | None = None
    guidance_scale: Annotated[Real, Field(ge=0, le=100)] | None = None
    negative_prompt: Annotated[str, AfterValidator(_text)] = ""
    lora: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_text)] | None = None
    lora_scale: Real | None = None
    loras: Annotated[tuple[ChosenLora, ...] | None, PlainValidator(_loras)] = None
    shift: Annotated[Real, Field(gt=0)] | None = None
    priority: Annotated[Whole, Field(ge=-HIGHEST, le=HIGHEST)] = 0
    stream: Annotated[Literal[False], PlainValidator(_whole_answer)] = False

    @property
    def wanted_size(self) -> Size | Aspect | None:
        """What `size`, or `width` and `height`, ask for. Raises InvalidRequest if they do not agree."""
        if self.width is None and self.height is None:
            return self.size
        if self.width is None or self.height is None:
            given, missing = ("height", "width") if self.width is None else ("width", "height")
            raise InvalidRequest(f"{given}: give {missing} too, or size", given)
        sides = Size(self.width, self.height)
        if self.size not in (None, sides):
            raise InvalidRequest(f"width: {sides} is not the size {self.size}; give one of them", "width")
        return sides


class ImageRequest(GenerationBody):
    """The body of POST /v1/images/generations, and the text fields of POST /v1/images/edits."""

    IGNORED = GenerationBody.IGNORED | {
        *("style", "moderation", "output_compression", "input_fidelity", "partial_images"),
        *("complexity", "svg", "frame_count", "frame_duration_ms"),
    }
    HINTS = MappingProxyType(
        {**HINTS, **dict.fromkeys(PICTURE_NAMES, "send pictures as image, and a mask as mask, to /v1/images/edits")}
    )

    n: Annotated[Whole, Field(ge=1, le=MAX_PICTURES)] = 1
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Annotated[str, AfterValidator(_picture_format)] = "png"
    strength: Annotated[Real, Field(gt=0, le=1)] | None = None
    background: Annotated[None, PlainValidator(_opaque)] = None


def with_defaults(
    asked: GenerationBody, spec: ModelSpec, limits: Limits, references: Sequence[Size], **fields: Any
) -> GenerateRequest:
    """The request with the model's defaults where nothing was asked; not checked yet. `references`: sizes of the fitted
    reference pictures. `fields`: those that only pictures or only videos have."""
    return complete(
        asked.prompt,
        spec,
        references,
        size=choose_size(asked.wanted_size, spec, limits),
        steps=asked.num_inference_steps,
        seed=asked.seed,
        guidance=asked.guidance_scale,
        negative_prompt=asked.negative_prompt,
        loras=choose_loras(asked.lora, asked.lora_scale, asked.loras),
        shift=asked.shift,
        **fields,
    )


def stand_ins(asked: GenerationBody, spec: ModelSpec, limits: Limits, count: int) -> tuple[Size, ...]:
    """Sizes that stand for `count` reference pictures that are not decoded yet: that of the result."""
    return (choose_size(asked.wanted_size, spec, limits) or spec.edit_size((spec.size,)),) * count


def to_requests(
    asked: ImageRequest, spec: ModelSpec, limits: Limits, references: Sequence[Size] = (), *, is_masked: bool = False
) -> tuple[GenerateRequest, ...]:
    """One frozen request per picture, with consecutive seeds. `references`: sizes of the fitted reference pictures;
    `is_masked`: whether the first one has a mask. Raises InvalidRequest."""
    first = with_defaults(asked, spec, limits, references, strength=asked.strength, frames=1, is_masked=is_masked)
    check_request(first, spec, limits)
    seeds = ((first.seed + index) % SEEDS for index in range(asked.n))
    return tuple(replace(first, id=str(uuid.uuid4()), seed=seed) for seed in seeds)


def images_body(
    output_format: str, made: Sequence[GenerateRequest], pictures: Sequence[bytes | str], created: int
) -> bytes:
    """OpenAI's ImagesResponse in JSON. `pictures`: files, or their URLs. `seed` is an addition: it makes a picture
    reproducible.

    It is written by hand: base64 needs no escaping, and a serialiser would scan and copy all of it again.
    """
    return b"".join(_images_body(output_format, made, pictures, created))


def _images_body(
    output_format: str, made: Sequence[GenerateRequest], pictures: Sequence[bytes | str], created: int
) -> Iterator[bytes]:
    size = str(made[0].size).encode()
    yield b'{"created":%d,"output_format":"%b","size":"%b","data":[' % (created, output_format.encode(), size)
    for index, (one, picture) in enumerate(zip(made, pictures, strict=True)):
        yield b'%b{"seed":%d,' % (b"," if index else b"", one.seed)
        if isinstance(picture, str):
            yield b'"url":%b}' % json.dumps(picture).encode()
        else:
            yield b'"b64_json":"'
            yield b64encode(picture)
            yield b'"}'
    yield b"]}"


def model_body(name: str, created: int) -> dict[str, Any]:
    """OpenAI's Model object, the answer to GET /v1/models/{id}."""
    return {"id": name, "object": "model", "created": created, "owned_by": "lightx2v"}


def models_body(names: Iterable[str], created: int) -> dict[str, Any]:
    """The answer to GET /v1/models."""
    return {"object": "list", "data": [model_body(name, created) for name in names]}
