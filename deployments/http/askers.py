"""Who asks for work, and with what priority."""

from __future__ import annotations

from starlette.requests import Request

from deployments.http.keys import SCOPE_KEY, Key
from deployments.serving.admission import Asker
from lightx2v.errors import InvalidRequest
from lightx2v.key_hash import hash_of

HIGHEST = 10
"""Priorities go from -HIGHEST to HIGHEST."""


def asker_of(request: Request, priority: int, most: int) -> Asker:
    """The asker of a request. Raises InvalidRequest for a priority above `most`, the server's setting, or above that of
    the caller's key. The priority of who asks for none, 0, is lowered to them instead."""
    best = best_asker(request, most)
    if priority > max(0, best.priority):
        raise InvalidRequest(f"priority: at most {best.priority} is allowed to you, got {priority}", "priority")
    return Asker(best.caller, min(priority, best.priority))


def best_asker(request: Request, most: int) -> Asker:
    """The asker as it may turn out at best, before the body tells the priority."""
    if (known := _key_of(request)) is not None:
        return Asker(known.sha256, min(most, known.max_priority))
    return Asker(_caller_of(request), most)


def _key_of(request: Request) -> Key | None:
    """The entry of the caller's key; None if the server asks for none."""
    key: Key | None = request.scope.get(SCOPE_KEY)
    return key


def _caller_of(request: Request) -> str:
    """A hash of what the caller sent as a key, which is never kept or logged itself. All without one are one caller."""
    key = request.headers.get("authorization", "").strip()
    return hash_of(key) if key else ""
