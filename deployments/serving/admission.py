"""Admits requests. What finds the queue full, or is predicted to miss its deadline, is refused at the door."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from deployments.serving.deadline import Deadline
from deployments.serving.graph import Rank
from lightx2v.errors import DeadlineExceeded, QueueFull
from lightx2v.residency.backlog import Backlog, End, Entry

RETRY_SECONDS = 1.0
"""The soonest that a refused request is asked to try again."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, by a hash of the key, and with what priority; the higher, the sooner."""

    caller: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request would not be admitted."""

    entry: Entry
    reason: str
    after: float
    """Seconds until there would be room for it."""


@dataclass(slots=True)
class Place:
    """The place of an admitted request in the queue, until it has left. `end` tells how it leaves."""

    entry: Entry
    deadline: Deadline
    backlog: Backlog
    end: End = "left"

    @property
    def rank(self) -> Rank:
        """Its place in the order, for the stages."""
        return Rank(self.entry.priority, self.entry.turn)

    @property
    def position(self) -> int:
        """The number of requests that go before it."""
        return self.backlog.position(self.entry)

    @property
    def seconds(self) -> float | None:
        """The predicted seconds until its end; None if nothing is known of its model yet."""
        return self.backlog.seconds(self.entry, time.monotonic())

    def resize(self, work: float) -> None:
        """Corrects the work: it is known exactly once the pictures of a request are decoded."""
        self.entry.work = work

    @asynccontextmanager
    async def making(self) -> AsyncIterator[None]:
        """The body makes the request's result; at the deadline it is cancelled, with DeadlineExceeded.

        Raises QueueFull in its place if there was time left, but not enough to begin behind the others.
        """
        try:
            async with self.deadline.enforced():
                yield
        except DeadlineExceeded:
            self.end = "late"
            if self.deadline.left > 0 and not self.entry.is_alone:
                raise QueueFull("others went first, so it cannot be made in time; try again later") from None
            raise
        self.end = "made"


class Admission:
    """Admits the requests of one model into the backlog of all models.

    At most `limit` are inside at a time, which bounds memory. Time is bounded by the prediction: a request is refused
    if it would probably not be made within `seconds`. While nothing is inside, one is always admitted: what it takes
    corrects a prediction that was wrong.
    """

    def __init__(self, model: str, limit: int, seconds: float, backlog: Backlog) -> None:
        self.limit = limit
        self._model, self._seconds, self._backlog = model, seconds, backlog

    @property
    def inside(self) -> int:
        """How many requests are inside."""
        return self._backlog.count(self._model)

    @property
    def free(self) -> int:
        """How many more requests the queue takes now."""
        return self.limit - self.inside

    @property
    def drained_in(self) -> float | None:
        """The predicted seconds until all requests that are inside have ended; None if nothing is known yet."""
        return self._backlog.drained_in(self._model, time.monotonic())

    def refusal(self, asker: Asker, work: float) -> Refusal | None:
        """Why a request of this much work would be refused now; None if it would be admitted."""
        return self._refusal(self._propose(asker, work))

    def turn_away(self, refusal: Refusal) -> QueueFull:
        """The error for a refused caller, which says when to try again."""
        seconds = self._backlog.come_back(refusal.entry, refusal.after, time.monotonic())
        return QueueFull(f"{refusal.reason}; try again in {seconds:.0f} s", seconds)

    @contextmanager
    def admitted(self, asker: Asker, work: float) -> Iterator[Place]:
        """Gives a request a place within the body. Its deadline begins now. Raises QueueFull."""
        place = self._propose(asker, work)
        if (refusal := self._refusal(place)) is not None:
            raise self.turn_away(refusal)
        self._backlog.enter(place.entry, time.monotonic())
        try:
            yield place
        finally:
            self._backlog.leave(place.entry, place.end, time.monotonic())

    def _propose(self, asker: Asker, work: float) -> Place:
        entry = self._backlog.propose(self._model, work, asker.caller, asker.priority, time.monotonic())
        return Place(entry, Deadline.after(self._seconds), self._backlog)

    def _refusal(self, place: Place) -> Refusal | None:
        promised = self._backlog.promised(place.entry, time.monotonic()) or 0.0
        after = max(RETRY_SECONDS, promised - self._seconds)
        if self.free <= 0:
            return Refusal(place.entry, f"{self.limit} requests are waiting already", after)
        if promised > self._seconds and self._backlog.count():
            behind = f"behind {place.position} others it would be made in {promised:.1f} s"
            return Refusal(place.entry, f"{behind}, and it has {self._seconds:g} s", after)
        return None
