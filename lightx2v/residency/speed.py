"""The measured speed of one model: seconds for a unit of work, alone and when others are inside."""

from __future__ import annotations

MEMORY = 0.85
"""The weight that older measurements keep at each new one, so about the last seven count."""
MOST_CHANGE = 3.0
"""One measurement counts as at most this multiple of what is known: a first load or a pause is no speed."""


class Speed:
    """What the requests of a model that have ended tell.

    A request that waits for nobody takes `alone` seconds per unit of work. While several are inside, the server takes
    `shared` seconds for each unit that it finishes: less than `alone` if stages overlap or there are several replicas,
    more if requests hinder each other.
    """

    def __init__(self) -> None:
        self._alone: float | None = None
        self._seconds = self._work = 0.0

    @property
    def alone(self) -> float | None:
        """Seconds per unit of work of a request that waits for nobody; `shared` until one was made. None at first."""
        return self._measured if self._alone is None else self._alone

    @property
    def shared(self) -> float | None:
        """Seconds per unit of work at which a backlog drains; `alone` until it was measured. None at first."""
        return self._alone if self._measured is None else self._measured

    def note_alone(self, seconds: float, work: float) -> None:
        """A request was inside for this long, and no other with it. A faster one than before counts at once."""
        speed = seconds / work
        known = speed if self._alone is None else self._alone
        self._alone = min(speed, MEMORY * known + (1 - MEMORY) * min(speed, MOST_CHANGE * known))
        if self._measured is not None and self._measured > speed:  # one after the other, they would drain so fast
            self._seconds, self._work = seconds, work

    def note_inside(self, seconds: float, work: float) -> None:
        """A request was made in this time, with others inside. Alone it would not have taken longer."""
        speed = seconds / work
        self._alone = speed if self._alone is None else min(self._alone, speed)

    def note_shared(self, seconds: float, work: float) -> None:
        """The server took `seconds` to finish `work` units, and had more to do."""
        if (known := self.shared) is not None:
            seconds = min(seconds, MOST_CHANGE * known * work)
        self._seconds = MEMORY * self._seconds + seconds
        self._work = MEMORY * self._work + work

    @property
    def _measured(self) -> float | None:
        return self._seconds / self._work if self._work else None
