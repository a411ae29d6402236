"""The parts of a measurement of one server on one card, each beside its bound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.ask import TEXT, Ask, numbers
from benchmarks.gpu_memory import Watch, contexts
from benchmarks.load.answer import Answer, pictures
from benchmarks.load.arrivals import poisson
from benchmarks.load.measure import differing, measure_closed, measure_open
from benchmarks.load.mix import even
from benchmarks.load.queueing import md1_quantile, waits
from benchmarks.report import sizes, summarise
from benchmarks.series import run_series
from benchmarks.server import Server
from deployments.card.memory_probe import open_probe
from lightx2v.residency.bounds import most_per_second

ALONE, CLOSED, OPEN = 1, 1001, 5001
"""The first number of each part's requests: the same on every server."""
SEED = 0


@dataclass(frozen=True)
class Parts:
    """What is measured of a server; 0 leaves a part out."""

    alone: int
    clients: int
    requests: int
    share: float
    seconds: float
    check: int
    deadline: float | None = None


class CardLoad:
    """`asks`, `computes`: one for each model. `digests`: of the pictures of earlier servers by the requests' numbers;
    those of this one are added."""

    def __init__(
        self,
        server: Server,
        budget: int,
        asks: Sequence[Ask],
        computes: Sequence[Mapping[str, Any]],
        digests: dict[int, str],
        parts: Parts,
    ) -> None:
        self._server, self._budget, self._parts, self._digests = server, budget, parts, digests
        self._asks, self._computes, self._mix = asks, computes, even(*asks)
        self._probe = open_probe(server.card()["id"])

    def measure(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The name and the figures of each part, when it is done."""
        parts, url = self._parts, self._server.url
        with Watch(self._probe) as watch:
            yield "alone", {"series": self._alone()}
            calls = self._mix.calls(numbers(CLOSED), SEED)
            closed = measure_closed(url, calls, parts.clients, parts.requests, parts.deadline)
            figures = closed.figures | self._bound(closed.per_second, closed.answers)
            yield "closed", figures | self._compared(closed.answers)
            if parts.check:
                yield "bits", differing(url, closed.answers, parts.check)
            if parts.share:
                yield "open", self._open(parts.share * closed.per_second, closed.per_second)
        within = watch.peak <= self._budget
        yield "memory", {"peak_bytes": watch.peak, "within_budget": within, "card": self._server.rest()}

    def _alone(self) -> list[dict[str, Any]]:
        """Of each model, requests one after another."""
        counter = numbers(ALONE)
        series = [run_series(self._server, ask, self._parts.alone, counter) for ask in self._asks]
        return [
            {"model": ask.model} | summarise(one, compute, self._room())
            for ask, one, compute in zip(self._asks, series, self._computes, strict=True)
        ]

    def _open(self, rate: float, most: float) -> dict[str, Any]:
        """Poisson arrivals, and how long they would take with a server that makes `most` a second, one by one."""
        parts = self._parts
        arrivals = poisson(rate, parts.seconds, SEED)
        calls = self._mix.calls(numbers(OPEN), SEED)
        load = measure_open(self._server.url, calls, arrivals, parts.seconds, parts.deadline)
        queued = np.percentile(waits(arrivals, 1 / most), 95) + 1 / most
        return load.figures | {
            "share": parts.share,
            "md1_p95_seconds": md1_quantile(parts.share, 0.95) / most,
            "same_arrivals_p95_seconds": float(queued),
        }

    def _bound(self, per_second: float, answers: Sequence[Answer]) -> dict[str, float]:
        """Beside the card's arithmetic; of one model also beside its bound, which knows the link."""
        seconds = dict(zip(self._asks, map(_seconds, self._computes), strict=True))
        mean = fmean(seconds[answer.call.ask] for answer in pictures(answers))
        found = {"compute_per_second": 1 / mean, "of_compute": per_second * mean}
        if len(self._asks) == 1:
            kind, link = self._computes[0]["kinds"][TEXT], self._computes[0]["link_bytes_per_second"]
            clients = self._parts.clients
            found["bound_per_second"] = most_per_second(sizes(kind), self._room(), link, kind["seconds"], clients)
        return found

    def _compared(self, answers: Sequence[Answer]) -> dict[str, int]:
        """How many pictures are others than an earlier server's for the same request."""
        made = {answer.call.number: answer.digest for answer in pictures(answers)}
        both = made.keys() & self._digests.keys()
        differ = sum(made[number] != self._digests[number] for number in both)
        self._digests.update({number: digest for number, digest in made.items() if number not in both})
        return {"compared_with_servers": len(both), "differ_from_servers": differ}

    def _room(self) -> int:
        """The cap less what the processes take by themselves."""
        return self._budget - contexts(self._server.rest(), self._probe.used())


def _seconds(compute: Mapping[str, Any]) -> float:
    """Of a picture's computation."""
    return float(sum(compute["kinds"][TEXT]["seconds"].values()))
