"""Reads request bodies within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from starlette.requests import Request

from lightx2v.errors import InvalidRequest, PayloadTooLarge

JSON, FORM = "application/json", "multipart/form-data"
BODY_SECONDS = 60.0
"""The longest time for a body to arrive."""


async def read_body(request: Request, limit: int) -> bytes:
    """The whole JSON body, of at most `limit` bytes, whatever length was declared.

    Raises InvalidRequest or PayloadTooLarge.
    """
    check_media_type(request, JSON)
    async with in_time(), aclosing(bounded(request, limit)) as stream:
        return b"".join([chunk async for chunk in stream])


def is_form(request: Request) -> bool:
    return _media_type(request) == FORM


def check_media_type(request: Request, *expected: str) -> None:
    """Raises InvalidRequest. A page of another site can post text/plain without preflight, but no application/json."""
    if _media_type(request) not in expected:
        got = request.headers.get("content-type", "")
        raise InvalidRequest(f"Content-Type must be {' or '.join(expected)}, got {got[:80]!r}")


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Ends the body of the `with` after BODY_SECONDS with InvalidRequest."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            yield
    except TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {BODY_SECONDS:g} s") from None


async def bounded(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The chunks of the body. Raises PayloadTooLarge beyond `limit` bytes, before reading if the length is declared."""
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
