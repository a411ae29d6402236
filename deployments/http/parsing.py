"""Parses bodies and forms into typed requests. Nothing is guessed; an unknown parameter is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from deployments.http.numbers import from_digits
from deployments.http.synonyms import HINTS, SYNONYMS
from lightx2v.errors import InvalidRequest


class Body(BaseModel):
    """Base of the request bodies; a subclass declares the accepted parameters as fields."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    IGNORED: ClassVar[frozenset[str]] = frozenset()
    """OpenAI's parameters that mean nothing to an open model; accepted so that stock clients work."""

    HINTS: ClassVar[Mapping[str, str]] = HINTS
    """Names that are refused, with the field that each may mean or a sentence on what to do."""

    SYNONYMS: ClassVar[Mapping[str, str]] = SYNONYMS
    """Names that are accepted, with the field that each means."""


B = TypeVar("B", bound=Body)
MAX_VALUES = 1 << 20
"""The most values in a JSON body. Most of a long body is pictures; 32 MiB of empty lists would take 700 MB."""


def parse_json(kind: type[B], body: bytes) -> B:
    """The request in a JSON body. Raises InvalidRequest."""
    return parse(kind, read_object(body))


def parse_form(kind: type[B], fields: Mapping[str, str]) -> B:
    """The request in a form's text fields. Raises InvalidRequest."""
    return parse(kind, present(fields))


def read_object(body: bytes) -> dict[str, Any]:
    """The object in a JSON body. `null` means absent, as OpenAI documents it. Raises InvalidRequest."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise InvalidRequest(f"the body has more than {MAX_VALUES} values")
    try:
        values = json.loads(
            body.decode(), object_pairs_hook=_unique, parse_int=from_digits, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON in UTF-8: {error}"[:200]) from None
    if not isinstance(values, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {shown(values)}")
    return {key: value for key, value in values.items() if value is not None}


def present(fields: Mapping[str, str]) -> dict[str, Any]:
    """A form's fields without the empty ones: a form has no other way to leave a field out."""
    return {key: value for key, value in fields.items() if value}


def parse(kind: type[B], values: Mapping[str, Any]) -> B:
    """The request in the fields that are present. Raises InvalidRequest."""
    names = _named(kind, values)
    try:
        return kind.model_validate({field: values[name] for field, name in names.items()})
    except ValidationError as error:
        raise _first(error, names) from None


def shown(value: object) -> str:
    """A value of the caller for an error message, in at most 80 characters."""
    if not isinstance(value, str | int | float):
        return f"a {type(value).__name__}"
    if isinstance(value, float) and math.isinf(value):
        return "a number that is too large"
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


def _named(kind: type[Body], values: Mapping[str, Any]) -> dict[str, str]:
    """The fields that are given, each with the name that the client gives it.

    Raises InvalidRequest for a field under two names, and for an unknown one before pydantic, which would describe each
    of 10^5 unknown keys.
    """
    names: dict[str, str] = {}
    for key in values:
        field = kind.SYNONYMS.get(key, key)
        base = key.partition("[")[0]  # a form spells an entry of an object as metadata[key]
        if field in names:
            raise InvalidRequest(f"{key}: give it or {names[field]}, not both", key)
        if field in kind.model_fields:
            names[field] = key
        elif base not in kind.IGNORED:
            raise InvalidRequest(f"unknown parameter {shown(key)}; {_hint(kind, key[:80])}", key[:80])
    return names


def _hint(kind: type[Body], key: str) -> str:
    fields = tuple(kind.model_fields)
    hint = kind.HINTS.get(key.lower(), "")
    if " " in hint:
        return hint
    within = [field for field in fields if len(key) > 2 and key in field]
    near = [hint] if hint in fields else within or get_close_matches(key, fields, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(fields)}"


def _first(error: ValidationError, names: Mapping[str, str]) -> InvalidRequest:
    """The first complaint, with the client's name of the field and the value that caused it."""
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0])
    param = names.get(field, field)
    if first["type"] == "missing":
        return InvalidRequest(f"{param} is required", param)
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
    return InvalidRequest(f"{param}: {message}, got {shown(first['input'])}", param)
