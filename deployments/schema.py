"""What the images API takes and answers. A request is checked in full before anything is queued for it.

Two kinds of limits: what holds for every model is in `ImageRequest`; what depends on the deployment is in `Limits`
and on the model in its `Recipe`, and is applied by `to_requests`.
"""

from __future__ import annotations

import json
import re
import secrets
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from deployments.media import OutputFormat, b64, data_url
from lightx2v.core import GenerateRequest, Size
from lightx2v.errors import InvalidRequest
from lightx2v.limits import RANDOM_SEEDS, SEEDS, Limits
from lightx2v.models.recipe import check_request, choose_strength
from lightx2v.models.registry import Recipe

IGNORED = frozenset(
    {"user", "safety_identifier", "quality", "style", "background", "moderation"}
    | {"output_compression", "input_fidelity", "partial_images"}
)
"""Documented by OpenAI, without meaning for an open model; accepted so that stock clients work."""


def _text(text: str) -> str:
    """Tokenizers fail on half a surrogate pair, which JSON can spell and pydantic lets through."""
    if re.search("[\0\ud800-\udfff]", text):
        raise ValueError("NUL and lone surrogates are not allowed")
    return text


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


class ImageRequest(BaseModel):
    """The body of POST /v1/images/generations, and the text fields of POST /v1/images/edits."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    prompt: Annotated[str, AfterValidator(_prompt)]
    model: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_text)] | None = None
    size: Annotated[Size | None, PlainValidator(_size)] = None
    n: Annotated[int, Field(ge=1, le=10)] = 1
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: OutputFormat = "png"
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    negative_prompt: Annotated[str, AfterValidator(_text)] = ""
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    lora: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_text)] | None = None
    lora_scale: float = 1.0


FIELDS = tuple(ImageRequest.model_fields)


def parse_json(body: bytes) -> ImageRequest:
    """`null` means absent, as OpenAI documents it."""
    try:
        values = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON in UTF-8: {error}"[:200]) from None
    if not isinstance(values, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {shown(values)}")
    present = _known({key: value for key, value in values.items() if value is not None})
    try:
        return ImageRequest.model_validate(present)
    except ValidationError as error:
        raise _first(error) from None


def parse_form(fields: Mapping[str, str]) -> ImageRequest:
    """The text fields of a form, where numbers come as strings."""
    try:
        return ImageRequest.model_validate_strings(_known(fields))
    except ValidationError as error:
        raise _first(error) from None


def to_requests(
    request: ImageRequest, recipe: Recipe, limits: Limits, references: Sequence[Size] = ()
) -> tuple[GenerateRequest, ...]:
    """One frozen request per picture, with consecutive seeds. `references` are the sizes of the fitted ones."""
    first = GenerateRequest(
        id=str(uuid.uuid4()),
        prompt=request.prompt,
        size=request.size or recipe.edit_size(references),
        steps=recipe.steps if request.num_inference_steps is None else request.num_inference_steps,
        seed=secrets.randbelow(RANDOM_SEEDS) if request.seed is None else request.seed,
        guidance=recipe.guidance if request.guidance_scale is None else request.guidance_scale,
        refine_guidance=request.guidance_scale,
        negative_prompt=request.negative_prompt,
        references=tuple(references),
        strength=choose_strength(request.strength, recipe, len(references)),
        lora=request.lora,
        lora_scale=request.lora_scale,
    )
    check_request(first, recipe, limits)
    seeds = ((first.seed + index) % SEEDS for index in range(request.n))
    return tuple(replace(first, id=str(uuid.uuid4()), seed=seed) for seed in seeds)


def images_body(
    request: ImageRequest, made: Sequence[GenerateRequest], pictures: Sequence[bytes], created: int
) -> dict[str, Any]:
    """OpenAI's ImagesResponse; `seed` is an addition, with which a picture can be made again."""
    kind = request.output_format
    return {
        "created": created,
        "data": [
            {"url": data_url(data, kind), "seed": one.seed}
            if request.response_format == "url"
            else {"b64_json": b64(data), "seed": one.seed}
            for one, data in zip(made, pictures, strict=True)
        ],
        "output_format": kind,
        "size": str(made[0].size),
    }


def models_body(names: Iterable[str], created: int) -> dict[str, Any]:
    """The answer to GET /v1/models."""
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": created, "owned_by": "lightx2v"} for name in names],
    }


def shown(value: object) -> str:
    """At most 80 characters of what the caller sent."""
    if not isinstance(value, str | int | float):
        return f"a {type(value).__name__}"
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise InvalidRequest(f"{shown(key)} is given twice", key[:80])
        values[key] = value
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"{name} is not a number in JSON")


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is ignored. Checked before pydantic, which would describe each of 10^5 unknown keys."""
    known: dict[str, Any] = {}
    for key, value in values.items():
        if key in FIELDS:
            known[key] = value
        elif key == "mask" or (key == "stream" and value not in (False, "false")):
            raise InvalidRequest(f"{key} is not supported", key)
        elif key != "stream" and key not in IGNORED:
            raise InvalidRequest(f"unknown parameter {shown(key)}; {_nearest(key[:80])}", key[:80])
    return known


def _nearest(key: str) -> str:
    within = [field for field in FIELDS if len(key) > 2 and key in field]
    near = within or get_close_matches(key, FIELDS, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(FIELDS)}"


def _first(error: ValidationError) -> InvalidRequest:
    """The first complaint, with what was got."""
    first = error.errors(include_url=False)[0]
    param = str(first["loc"][0])
    if first["type"] == "missing":
        return InvalidRequest(f"{param} is required", param)
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
    return InvalidRequest(f"{param}: {message}, got {shown(first['input'])}", param)
