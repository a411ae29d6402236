"""Who may ask through a browser: no page of another site, neither by a form nor by DNS rebinding.

A browser sends a form of any site to a loopback port without asking it first, and it lets the pages of a name that was
rebound to 127.0.0.1 read the answers. Both show in headers that a page cannot write: `Origin`, `Sec-Fetch-Site` and
`Host` (Fetch standard, forbidden request-headers). Clients that are no browsers send neither of the first two.

Serve's proxy passes these headers as they came. Whether a connection is over loopback is read from `scope["server"]`,
the address of the socket that took it: `scope["client"]` is what uvicorn makes of `X-Forwarded-For` where the peer is
127.0.0.1, and a page can write that.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.envelope import error_response
from lightx2v.errors import HostNotAllowed, LightError, OriginNotAllowed

READING = ("GET", "HEAD", "OPTIONS")


class OriginCheck:
    """An ASGI middleware. `hosts` are names without a port, `origins` as browsers spell them, "https://example.com"."""

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
        if _is_loopback((scope.get("server") or ("", 0))[0]):
            self._check_host(host)
        if scope["method"] not in READING:
            self._check_origin(headers, host)

    def _check_host(self, host: str) -> None:
        name = (_split(f"//{host}") or "").lower()
        if host and not _is_loopback(name) and name not in self._hosts:
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
    """The name of a URL's host; None for what is no URL."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_loopback(name: str) -> bool:
    """Whether it names this machine to itself, whatever DNS says."""
    if name == "localhost":
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
