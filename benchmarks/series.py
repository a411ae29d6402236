"""Requests to a server one after another: the seconds of each, and the bytes that moved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPConnection
from itertools import islice
from urllib.parse import urlsplit

from benchmarks.ask import Ask
from benchmarks.server import Server

TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Series:
    """Requests of one kind, one after another."""

    kind: str
    first_seconds: float
    first_sha256: str
    """SHA-256 of the first picture; it is the same under every cap."""
    seconds: tuple[float, ...]
    """The seconds of each request after the first."""
    h2d_bytes: float
    d2h_bytes: float
    """The bytes of weights per request after the first."""


def run_series(server: Server, ask: Ask, times: int, numbers: Iterator[int]) -> Series:
    """`times` requests and a first one. Raises RuntimeError if one fails."""
    with connected(server) as http:
        first, body = ask.send(http, next(numbers))
        before = server.rest()
        seconds = tuple(ask.send(http, number)[0] for number in islice(numbers, times))
        after = server.rest()
    h2d, d2h = ((after[key] - before[key]) / times for key in ("h2d_bytes_total", "d2h_bytes_total"))
    picture = json.loads(body)["data"][0]["b64_json"]
    return Series(ask.kind, first, sha256(picture.encode()).hexdigest(), seconds, h2d, d2h)


def connected(server: Server) -> AbstractContextManager[HTTPConnection]:
    return closing(HTTPConnection(urlsplit(server.url).netloc, timeout=TIMEOUT_SECONDS))
