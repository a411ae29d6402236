"""The pictures that come with a request, as files of a form or as data URLs in JSON."""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import whitespace
from typing import Any

from starlette.requests import Request

from deployments.http.bodies import FORM, JSON, check_media_type, is_form, read_body
from deployments.http.forms import Part, read_form
from deployments.http.parsing import present, read_object, shown
from lightx2v.errors import InvalidRequest

URL_KEYS = ("image_url", "url")
"""The keys around a data URL: {"image_url": "data:..."}, or OpenAI's {"image_url": {"url": "data:..."}}."""
WHITESPACE = whitespace.encode()


@dataclass(frozen=True, slots=True)
class Uploads:
    """The picture files of one request. `mask` is that of the first picture, None if there is none."""

    pictures: tuple[bytes, ...] = ()
    mask: bytes | None = None


@dataclass(frozen=True, slots=True)
class UploadNames:
    """The names under which a route takes pictures: any one of `pictures`, and `mask` if it takes masks."""

    pictures: tuple[str, ...]
    mask: str | None = None

    def __contains__(self, name: object) -> bool:
        return name in self.pictures or (self.mask is not None and name == self.mask)

    def split(self, key: str) -> tuple[str, int] | None:
        """The name and the position in a form's key such as `image`, `image[]`, `image[1]` or `image[image_url]`, the
        spelling of an object in a form; None for a key of another field."""
        match = re.fullmatch(r"([a-z_]+)(?:\[([0-9]{0,4})\])?(?:\[image_url\])?(?:\[url\])?", key)
        return (match[1], int(match[2] or 0)) if match and match[1] in self else None


@dataclass(frozen=True, slots=True)
class _Upload:
    name: str
    position: int
    data: bytes


async def read_uploads(request: Request, limit: int, names: UploadNames, most: int) -> tuple[dict[str, Any], Uploads]:
    """The fields and the pictures of a form or a JSON body of at most `limit` bytes, with at most `most` pictures.

    A form's fields are strings, and empty ones are left out. Raises InvalidRequest or PayloadTooLarge.
    """
    check_media_type(request, JSON, FORM)
    if is_form(request):
        parts = await read_form(request, limit, lambda key: names.split(key) is not None)
        return await asyncio.to_thread(_from_form, parts, names, most)
    body = await read_body(request, limit)
    return await asyncio.to_thread(_from_json, body, names, most)


def _from_form(parts: Sequence[Part], names: UploadNames, most: int) -> tuple[dict[str, Any], Uploads]:
    return _form_fields(parts, names), _uploads(list(_form_uploads(parts, names)), names, most)


def _form_fields(parts: Sequence[Part], names: UploadNames) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for part in parts:
        if names.split(part.name) is None:
            if part.name in fields:
                raise InvalidRequest(f"{shown(part.name)} is given twice", part.name[:80])
            fields[part.name] = part.text
    return present(fields)


def _form_uploads(parts: Sequence[Part], names: UploadNames) -> Iterator[_Upload]:
    for part in parts:
        if (found := names.split(part.name)) is not None:
            name, position = found
            is_url = re.match(rb"\s*(data|https?):", part.data, re.IGNORECASE)
            yield _Upload(name, position, _from_url(part.text, name) if is_url else bytes(part.data))


def _from_json(body: bytes, names: UploadNames, most: int) -> tuple[dict[str, Any], Uploads]:
    values = read_object(body)
    found = [
        _Upload(name, position, _from_value(one, name))
        for name in [key for key in values if key in names]
        for position, one in enumerate(_listed(values.pop(name)))
    ]
    return values, _uploads(found, names, most)


def _listed(value: object) -> list[Any]:
    """The pictures in a value of JSON; an empty text is none."""
    if isinstance(value, list):
        return value
    return [] if value == "" else [value]


def _from_value(value: object, name: str) -> bytes:
    for key in URL_KEYS:
        if isinstance(value, dict) and key in value:
            value = value[key]
    if isinstance(value, dict) and "file_id" in value:
        raise InvalidRequest(f"{name}: files are not kept here; send the picture as a data URL or a file", name)
    if not isinstance(value, str):
        expected = 'must be a data URL or an object such as {"image_url": "data:image/png;base64,..."}'
        raise InvalidRequest(f"{name}: {expected}, got {shown(value)}", name)
    return _from_url(value, name)


def _from_url(text: str, name: str) -> bytes:
    """The bytes in a data URL, or in its base64 alone. Raises InvalidRequest."""
    if re.match(r"\s*https?:", text, re.IGNORECASE):
        raise InvalidRequest(f"{name}: image URLs are not fetched; send the picture as a data URL or a file", name)
    head, comma, data = text.rpartition(",")
    if comma and not re.fullmatch(r"\s*data:[^,]{0,200};\s*base64\s*", head, re.IGNORECASE):
        raise InvalidRequest(f"{name}: must be a data URL in base64, as in 'data:image/png;base64,...'", name)
    try:
        digits = data.encode("ascii").translate(None, WHITESPACE)
        return b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise InvalidRequest(f"{name}: must be a data URL in base64, got {shown(text)}", name) from None


def _uploads(found: Sequence[_Upload], names: UploadNames, most: int) -> Uploads:
    """Raises InvalidRequest for too many pictures, or pictures under two names."""
    pictures = sorted((one for one in found if one.name != names.mask), key=lambda one: one.position)
    masks = [one.data for one in found if one.name == names.mask and one.data]
    if len({one.name for one in pictures}) > 1:
        first, second = names.pictures
        raise InvalidRequest(f"{second}: give it or {first}, not both", second)
    if len(pictures) > most:
        name = pictures[0].name
        raise InvalidRequest(f"{name}: at most {most} pictures, got {len(pictures)}", name)
    if len(masks) > 1:
        raise InvalidRequest(f"{names.mask}: at most one, got {len(masks)}", names.mask)
    return Uploads(tuple(one.data for one in pictures), masks[0] if masks else None)
