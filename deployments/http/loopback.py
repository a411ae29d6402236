"""Whether a name or a connection stays on this machine, and a check that it does."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv6Address, ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.http.errors import error_response
from lightx2v.errors import KeysRequired


def is_loopback(name: str) -> bool:
    """Whether a name means this machine whatever DNS says."""
    if name == "localhost":
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def came_over_loopback(scope: Scope) -> bool:
    """Whether the connection of a request was accepted on a loopback address of this machine."""
    return is_loopback((scope.get("server") or ("", 0))[0])


class LoopbackOnly:
    """ASGI middleware that refuses requests from other machines, but for `open_paths`: nobody has set keys, and nobody
    has said that everybody may ask."""

    def __init__(self, app: ASGIApp, open_paths: Collection[str]) -> None:
        self._app, self._open_paths = app, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open_paths and not came_over_loopback(scope):
            error = KeysRequired(
                "this server asks for no keys, so it serves its own machine only; "
                "set server.keys_file, or server.allow_without_keys if others keep strangers away"
            )
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)
