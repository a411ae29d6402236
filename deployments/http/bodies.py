"""Reads request bodies and forms, within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from lightx2v.errors import InvalidRequest, PayloadTooLarge

JSON, FORM = "application/json", "multipart/form-data"
MAX_FORM_FIELDS = 64
MAX_FIELD_BYTES = 256 << 10
BODY_SECONDS = 60.0
"""The longest time for a body to arrive."""


async def read_body(request: Request, limit: int) -> bytes:
    """The whole JSON body, of at most `limit` bytes, whatever length was declared.

    Raises InvalidRequest or PayloadTooLarge.
    """
    _check_media_type(request, JSON)
    async with _in_time(), aclosing(_bounded(request, limit)) as stream:
        return b"".join([chunk async for chunk in stream])


async def read_form(
    request: Request, limit: int, max_files: int, names: Collection[str]
) -> tuple[dict[str, str], list[bytes]]:
    """The text fields and, in order, the files of a multipart form of at most `limit` bytes. Every file's field must
    have one of `names`. Raises InvalidRequest or PayloadTooLarge."""
    _check_media_type(request, FORM)
    reader = _FormReader(request, limit, max_files)
    try:
        async with _in_time(), aclosing(reader.stream):
            form = await reader.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the form cannot be read: {error.message}") from None
    try:
        return _fields(form, names), await _files(form, names)
    finally:
        await form.close()


def is_form(request: Request) -> bool:
    return _media_type(request) == FORM


class _FormReader(MultiPartParser):
    """Starlette's parser, which would accept a truncated form as complete."""

    def __init__(self, request: Request, limit: int, max_files: int) -> None:
        stream = self._whole(_bounded(request, limit))
        counts = {"max_files": max_files, "max_fields": MAX_FORM_FIELDS, "max_part_size": MAX_FIELD_BYTES}
        super().__init__(request.headers, stream, **counts)
        self._complete = False

    def on_end(self) -> None:
        self._complete = True

    async def _whole(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async with aclosing(stream):
            async for chunk in stream:
                yield chunk
        if not self._complete:
            raise MultiPartException("it ends before its last boundary")


def _check_media_type(request: Request, expected: str) -> None:
    """Raises InvalidRequest. A page of another site can post text/plain without preflight, but no application/json."""
    if _media_type(request) != expected:
        got = request.headers.get("content-type", "")
        raise InvalidRequest(f"Content-Type must be {expected}, got {got[:80]!r}")


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            yield
    except TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {BODY_SECONDS:g} s") from None


async def _bounded(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    too_large = PayloadTooLarge(f"the body is longer than {limit} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise too_large
        yield chunk


def _fields(form: FormData, names: Collection[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            continue
        if key in fields or key in names:
            raise InvalidRequest(f"{key[:80]!r} is {'given twice' if key in fields else 'not a file'}", key[:80])
        fields[key] = value
    return fields


async def _files(form: FormData, names: Collection[str]) -> list[bytes]:
    files = [(key, value) for key, value in form.multi_items() if isinstance(value, UploadFile)]
    for key, _ in files:
        if key not in names:
            raise InvalidRequest(f"a file {key[:80]!r} is not supported, only {' or '.join(names)}", key[:80])
    return [await file.read() for _, file in files]
