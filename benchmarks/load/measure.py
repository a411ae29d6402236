"""Loads a server for a while and gives the figures: pictures a second, latencies, bytes a picture, cohorts, bits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.answer import Answer, pictures
from benchmarks.load.bits import check, sample
from benchmarks.load.card_watch import CardWatch, watched
from benchmarks.load.client import Client
from benchmarks.load.loops import closed_loop, open_loop
from benchmarks.load.mix import Call
from benchmarks.load.summary import in_time, rate_within, steady_rate, summarise


@dataclass(frozen=True)
class Load:
    """The answers to one load, and the figures of it."""

    answers: list[Answer]
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        return float(self.figures["per_second"])


def measure_closed(url: str, calls: Iterator[Call], clients: int, requests: int, deadline: float | None = None) -> Load:
    """So many clients at once that send so many requests together; pictures a second are counted while all wait.
    Raises ValueError for less than three pictures a client."""
    answers, watch = _run(url, lambda client: closed_loop(client, calls, clients, requests=requests))
    rate = steady_rate([answer.ended for answer in in_time(answers, deadline)], clients)
    return _load(answers, watch, rate, deadline, {"clients": clients})


def measure_clients(
    url: str, calls: Iterator[Call], clients: int, seconds: float, deadline: float | None = None
) -> Load:
    """So many clients at once for so many seconds, of which some may be refused."""
    answers, watch = _run(url, lambda client: closed_loop(client, calls, clients, seconds=seconds))
    return _load(answers, watch, rate_within(answers, seconds, deadline), deadline, {"clients": clients})


def measure_open(
    url: str, calls: Iterator[Call], arrivals: Sequence[float], seconds: float, deadline: float | None = None
) -> Load:
    """Requests at these moments of so many seconds."""
    answers, watch = _run(url, lambda client: open_loop(client, calls, arrivals))
    offered = {"offered_per_second": len(arrivals) / seconds}
    return _load(answers, watch, rate_within(answers, seconds, deadline), deadline, offered)


def differing(url: str, answers: Sequence[Answer], most: int | None = None) -> dict[str, Any]:
    """How many of the load's pictures, or of `most` of them, are others than those that the same requests make alone
    on the server at `url`, and which."""

    async def compare() -> dict[str, Any]:
        chosen = sample(answers, most)
        async with Client(url) as client:
            others = await check(client, chosen)
        return {"compared": len(chosen), "differ": len(others), "numbers": [one.call.number for one in others]}

    return asyncio.run(compare())


def _run(url: str, work: Callable[[Client], Awaitable[list[Answer]]]) -> tuple[list[Answer], CardWatch]:
    async def run() -> tuple[list[Answer], CardWatch]:
        async with Client(url) as client:
            async with watched(client) as watch:
                answers = await work(client)
            return answers, watch

    return asyncio.run(run())


def _load(answers: list[Answer], watch: CardWatch, rate: float, deadline: float | None, asked: dict[str, Any]) -> Load:
    figures = asked | summarise(answers, rate, deadline)
    figures |= {"h2d_bytes_per_picture": watch.moved / max(1, len(pictures(answers))), "cohorts": watch.cohorts()}
    return Load(answers, figures)
