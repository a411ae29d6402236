"""Who asks for work, and with what priority."""

from __future__ import annotations

import hashlib

from starlette.requests import Request

from deployments.serving.admission import Asker
from lightx2v.errors import InvalidRequest

HIGHEST = 10
"""Priorities go from -HIGHEST to HIGHEST."""


def asker_of(request: Request, priority: int, most: int) -> Asker:
    """The asker of a request. Raises InvalidRequest for a priority above `most`, the server's setting."""
    if priority > most:
        raise InvalidRequest(f"priority: at most {most} on this server, got {priority}", "priority")
    return Asker(_caller_of(request), priority)


def _caller_of(request: Request) -> str:
    """A hash of the caller's key, which is never kept or logged itself. Callers without a key count as one."""
    key = request.headers.get("authorization", "").strip()
    return hashlib.sha256(key.encode()).hexdigest() if key else ""
