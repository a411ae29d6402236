"""A server whose service takes a known time, and a crowd before its door, whom a `Backlog` admits or refuses."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightx2v.residency.backlog import Backlog, Entry

PAUSE = 0.5
"""The seconds after which a refused client asks again: it does not listen."""


@dataclass
class Crowd:
    """`clients` that each ask for the next picture as soon as they have an answer, of the models and works in turn.

    `service`: seconds of a unit of work, by model, on each of `replicas`; `slowness`: a factor of it, by the time.
    """

    clients: int
    timeout: float
    service: Mapping[str, float]
    replicas: int = 1
    works: Sequence[float] = (1.0,)
    slowness: Callable[[float], float] = lambda _: 1.0
    horizon: float = 240.0
    made: list[tuple[float, float]] = field(default_factory=list)
    """When each was made, and its work."""
    late: list[float] = field(default_factory=list)
    refused: int = 0

    def __post_init__(self) -> None:
        self._backlog = Backlog(self.service)
        self._models, self._events = list(self.service), list[tuple[float, int, Any]]()
        self._asked = self._count = 0
        self._waiting: list[tuple[Entry, float]] = []
        self._running: dict[Entry, float] = {}

    def run(self) -> Crowd:
        for _ in range(self.clients):
            self._at(0.0, None)
        while self._events and (next_event := heapq.heappop(self._events))[0] <= self.horizon:
            now, _, entry = next_event
            if entry is None:
                self._ask(now)
            else:
                self._end(entry, now)
            self._begin(now)
        return self

    def rate(self, start: float = 0.0, end: float | None = None) -> float:
        """Units of work made a second."""
        end = self.horizon if end is None else end
        return sum(work for at, work in self.made if start <= at < end) / (end - start)

    def _at(self, time: float, entry: Entry | None) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, entry))

    def _ask(self, now: float) -> None:
        self._asked += 1
        model, work = self._models[self._asked % len(self._models)], self.works[self._asked % len(self.works)]
        entry = self._backlog.propose(model, work, "", 0, now)
        promised = self._backlog.promised(entry, now)
        if promised is not None and promised > self.timeout and self._backlog.count():
            self.refused += 1
            self._at(now + PAUSE, None)
        else:
            self._backlog.enter(entry, now)
            self._waiting.append((entry, now + self.timeout))

    def _begin(self, now: float) -> None:
        """As the stages do: in the order, and nothing after its deadline."""
        self._waiting.sort(key=lambda one: one[0].order)
        while self._waiting and len(self._running) < self.replicas:
            entry, deadline = self._waiting.pop(0)
            if now > deadline:
                self._drop(entry, now)
            else:
                self._running[entry] = deadline
                self._at(now + self.service[entry.model] * entry.work * self.slowness(now), entry)

    def _end(self, entry: Entry, now: float) -> None:
        if now > self._running.pop(entry) + 1e-9:
            self._drop(entry, now)
            return
        self._backlog.leave(entry, "made", now)
        self.made.append((now, entry.work))
        self._at(now, None)

    def _drop(self, entry: Entry, now: float) -> None:
        self._backlog.leave(entry, "late", now)
        self.late.append(now)
        self._at(now, None)
