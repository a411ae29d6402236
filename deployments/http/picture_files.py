"""Finished pictures as files under URLs of this server, for requests whose `response_format` is `url`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.http.errors import with_error_responses
from deployments.http.kept import Kept, new_id
from lightx2v.errors import PictureNotFound
from lightx2v.media.encode import FORMATS

PATH = "v1/files"
SCHEMES = ("http", "https")


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A file in the format of this name."""

    data: bytes
    format: str


class PictureFiles:
    """The files of one application. `hosts`: the names of reverse proxies before it, without a port."""

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = hosts
        self._files = Kept[PictureFile]()

    def route(self) -> Route:
        return Route(f"/{PATH}/{{name}}", with_error_responses(self.content))

    def add(self, request: Request, data: bytes, output_format: str) -> str:
        """The URL of a new file, as the client of `request` reaches this server."""
        suffix, *_ = FORMATS[output_format].suffixes
        name = f"{new_id('picture')}{suffix}"
        self._files.add(name, PictureFile(data, output_format), len(data))
        return f"{self._base_url(request)}{PATH}/{name}"

    async def content(self, request: Request) -> Response:
        """GET /v1/files/{name}: a file. Raises PictureNotFound."""
        name = request.path_params["name"]
        file = self._files.find(name)
        if file is None:
            raise PictureNotFound(f"there is no file {name[:80]!r}: it has expired, or never was")
        return Response(file.data, media_type=FORMATS[file.format].media_type)

    def _base_url(self, request: Request) -> str:
        """The server's URL in the words of the request: its `Host`, or what a proxy was asked for.

        Only the client that sent these headers reads the answer. `X-Forwarded-Host` counts if the settings allow it.
        """
        url, headers = request.base_url, request.headers
        scheme, host = headers.get("x-forwarded-proto", ""), headers.get("x-forwarded-host", "")
        url = url.replace(scheme=scheme) if scheme in SCHEMES else url
        return str(url.replace(netloc=host) if _name(host) in self._hosts else url)


def _name(host: str) -> str | None:
    """The name in a `Host` header, in small letters; None if there is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
