"""Refuses requests from pages of other sites, whether sent by a form or through DNS rebinding.

A browser sends any site's form to a loopback port without preflight. It also lets a page whose name was rebound to
127.0.0.1 read the answers. Both show in headers that a page cannot set: `Origin`, `Sec-Fetch-Site` and `Host` (Fetch
standard, forbidden request-headers). Other clients send neither of the first two.

Serve's proxy passes these headers unchanged. `scope["server"]`, the address of the accepting socket, tells whether a
connection is over loopback. `scope["client"]` does not: where the peer is 127.0.0.1, uvicorn takes it from
`X-Forwarded-For`, which a page can set.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.http.errors import error_response
from deployments.http.loopback import came_over_loopback, is_loopback
from deployments.http.notices import NOTICE_HEADERS
from lightx2v.errors import HostNotAllowed, LightError, OriginNotAllowed

READING = ("GET", "HEAD", "OPTIONS")
METHODS = ("GET", "POST", "DELETE")
READABLE_HEADERS = (*NOTICE_HEADERS, "X-Should-Retry", "Retry-After")
"""Headers that a page of an allowed origin can read, besides those that the Fetch standard always shows."""


def origin_checks(hosts: Collection[str], origins: Collection[str]) -> list[Middleware]:
    """The middleware of an application, the outermost first. Pages of `origins` may read every answer, errors too, and
    send any header; there are no cookies to guard. Without `origins` no CORS header is sent."""
    check = Middleware(OriginCheck, hosts, origins)
    if not origins:
        return [check]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=METHODS,
        allow_headers=("*",),
        expose_headers=READABLE_HEADERS,
        allow_private_network=True,
    )
    return [cors, check]


class OriginCheck:
    """ASGI middleware that checks `Host` and `Origin`. `hosts`: further allowed names, without a port. `origins`:
    further allowed origins, such as "https://example.com"."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        self._app, self._hosts, self._origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                self._check(scope)
        except LightError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raises HostNotAllowed or OriginNotAllowed."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if came_over_loopback(scope):
            self._check_host(host)
        if scope["method"] not in READING:
            self._check_origin(headers, host)

    def _check_host(self, host: str) -> None:
        name = (_split(f"//{host}") or "").lower()
        if host and not is_loopback(name) and name not in self._hosts:
            raise HostNotAllowed(
                f"the host {host[:80]!r} is not served over loopback; the setting server.allowed_hosts allows it"
            )

    def _check_origin(self, headers: Headers, host: str) -> None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin in self._origins:
            return
        is_own = origin is None or origin.partition("://")[2] == host
        if not is_own or site in ("cross-site", "same-site"):
            raise OriginNotAllowed(
                f"a page of {(origin or 'another site')[:80]!r} may not ask for this; "
                "the setting server.allowed_origins allows it"
            )


def _split(url: str) -> str | None:
    """The host name in a URL; None if it is not a URL."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
