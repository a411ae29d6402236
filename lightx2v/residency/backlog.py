"""The backlog of a server: the requests inside, their order, and when each is predicted to end.

All times are seconds of the caller's clock. The prediction is that of a fluid: what is before a request in the order
drains at the measured speed of its model, on all cards together. A request takes at least its time alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lightx2v.residency.speed import Speed
from lightx2v.residency.turns import Turns

End = Literal["made", "late", "left"]
"""How a request ends: it is made, its time is over, or its caller or an error ends it."""
QUANTILE, STEP = 0.99, 0.1
"""The share of requests that shall not end after what was promised, and how far one of them moves the caution."""
LEAST_CAUTION, MOST_CAUTION = 1.1, 2.0
MOST_AWAY = 60.0
"""The most seconds for which a refused caller is sent away. The `openai` client waits no longer."""


@dataclass(slots=True, eq=False)
class Entry:
    """A request that is inside, or asks to enter. `work`: in planned requests of its model. `number`: it is the how
    manieth that came. `is_alone`: no other was inside with it so far. `predicted`: the seconds until its end, when it
    entered."""

    model: str
    caller: str
    work: float
    priority: int
    turn: float
    number: int
    entered_at: float
    is_alone: bool
    predicted: float | None = None

    @property
    def order(self) -> tuple[int, float, int]:
        """The least is served first."""
        return -self.priority, self.turn, self.number


class Backlog:
    """The requests inside a server of one or several `models`. It learns their speeds from how requests end."""

    def __init__(self, models: Iterable[str]) -> None:
        self._speeds = {model: Speed() for model in models}
        self._turns = Turns()
        self._inside: list[Entry] = []
        self._served: Entry | None = None
        self._since = 0.0
        self._count = 0
        self._next_back = 0.0
        self._caution = LEAST_CAUTION

    def propose(self, model: str, work: float, caller: str, priority: int, now: float) -> Entry:
        """A request as it would enter now; nothing is changed."""
        turn = self._turns.peek(caller)
        return Entry(model, caller, work, priority, turn, self._count + 1, now, not self._inside)

    def enter(self, entry: Entry, now: float) -> None:
        """Lets a request in that was proposed at the same time."""
        entry.predicted = self.seconds(entry, now)
        self._turns.take(entry.caller, self._cost(entry))
        self._count += 1
        for other in self._inside:
            other.is_alone = False
        self._inside.append(entry)
        if self._served is None:
            self._serve(now)

    def leave(self, entry: Entry, end: End, now: float) -> None:
        """Removes a request, and learns from how it ended."""
        if end != "left" and entry.predicted:
            self._heed((now - entry.entered_at) / entry.predicted)
        is_measured = self._learn(entry, end, now)
        self._inside.remove(entry)
        if is_measured or entry is self._served:
            self._serve(now)

    def seconds(self, entry: Entry, now: float) -> float | None:
        """The predicted seconds from `now` to the end of a request that is inside or was proposed; None if nothing is
        known of its model."""
        alone = self._speeds[entry.model].alone
        if alone is None:
            return None
        before = sum(self._left(other, now) for other in self._before(entry))
        return max(0.0, before + self._left(entry, now), entry.entered_at + alone * entry.work - now)

    def promised(self, entry: Entry, now: float) -> float | None:
        """The predicted seconds with the caution that keeps nearly all requests from ending later than promised."""
        seconds = self.seconds(entry, now)
        return None if seconds is None else self._caution * seconds

    def position(self, entry: Entry) -> int:
        """The number of requests that are served before this one."""
        return len(self._before(entry))

    def drained_in(self, model: str, now: float) -> float | None:
        """The predicted seconds until all requests of a model have ended; None if nothing is known of it."""
        ends = [self.seconds(one, now) for one in self._inside if one.model == model]
        return max((end for end in ends if end is not None), default=None if ends else 0.0)

    def come_back(self, entry: Entry, after: float, now: float) -> float:
        """The seconds for which the caller of a refused request is sent away, `after` at least. One comes back after
        the other, at the pace at which the server makes planned requests, so that a crowd does not come back at once.
        """
        at = min(max(now + after, self._next_back), now + MOST_AWAY)
        self._next_back = at + (self._speeds[entry.model].shared or 0.0)
        return at - now

    def count(self, model: str | None = None) -> int:
        """The number of requests inside: of one model, or of all."""
        return sum(model in (None, one.model) for one in self._inside)

    def _before(self, entry: Entry) -> list[Entry]:
        if entry is self._served:
            return []
        return [one for one in self._inside if one is self._served or one.order < entry.order]

    def _left(self, entry: Entry, now: float) -> float:
        """The server's seconds that a request still costs. The one that is served has had those since it began."""
        cost = self._cost(entry)
        return max(0.0, cost - (now - self._since)) if entry is self._served else cost

    def _cost(self, entry: Entry) -> float:
        """The server's seconds for a request; 0 if nothing is known of its model."""
        return entry.work * (self._speeds[entry.model].shared or 0.0)

    def _serve(self, now: float) -> None:
        """Takes the first in the order as the one that is served from now on."""
        self._served = min(self._inside, key=lambda one: one.order, default=None)
        self._since = now
        if self._served is None:
            self._turns.rest()
        else:
            self._turns.serve(self._served.turn)

    def _heed(self, ratio: float) -> None:
        """Moves the caution towards the quantile of the `ratio` of real to predicted seconds (Robbins and Monro)."""
        step = STEP * QUANTILE if ratio > self._caution else -STEP * (1 - QUANTILE)
        self._caution = min(MOST_CAUTION, max(LEAST_CAUTION, self._caution + step))

    def _learn(self, entry: Entry, end: End, now: float) -> bool:
        """Whether the seconds since the last measurement were counted, or were those of this request alone.

        A request whose time was over tells that the server is slow, unless it is known to be slower than that.
        """
        speed, inside, passed = self._speeds[entry.model], now - entry.entered_at, now - self._since
        if end == "left" or (end == "late" and passed <= self._cost(entry)):
            return False
        if entry.is_alone:
            speed.note_alone(inside, entry.work)
            return True
        if end == "made":
            speed.note_inside(inside, entry.work)
        if len(self._inside) > 1:
            speed.note_shared(passed, entry.work)
        return True
