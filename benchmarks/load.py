"""Loads a server with requests one after another, or with many at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPConnection
from itertools import islice
from urllib.parse import urlsplit

from benchmarks.ask import Ask
from benchmarks.server import Server

PER_CLIENT = 6
"""Requests that each client sends when the server is saturated."""

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


def saturate(server: Server, ask: Ask, clients: int, numbers: Iterator[int]) -> float:
    """Pictures per second of so many clients at once, each of which sends its next request when it has its answer."""
    turns = iter(list(islice(numbers, clients * PER_CLIENT)))
    ends: list[float] = []
    lock = threading.Lock()

    def send() -> None:
        with connected(server) as http:
            while True:
                with lock:
                    number = next(turns, None)
                if number is None:
                    return
                ask.send(http, number)
                ends.append(time.monotonic())

    with ThreadPoolExecutor(clients) as pool:
        for sent in [pool.submit(send) for _ in range(clients)]:
            sent.result()
    return rate(ends, clients)


def rate(ends: Sequence[float], clients: int) -> float:
    """Per second, while all `clients` waited for something: from the end of as many to that of all but so many."""
    ordered = sorted(ends)[clients - 1 :]
    return (len(ordered) - 1) / (ordered[-1] - ordered[0])


def connected(server: Server) -> AbstractContextManager[HTTPConnection]:
    return closing(HTTPConnection(urlsplit(server.url).netloc, timeout=TIMEOUT_SECONDS))
