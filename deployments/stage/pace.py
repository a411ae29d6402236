"""The pace of a stage: the seconds that its work takes, learned from its latest runs."""

from __future__ import annotations

WEIGHT = 0.3
"""The share of the latest run in the average."""


class Pace:
    """An exponential average of the seconds of a work of 1."""

    def __init__(self) -> None:
        self._per_work: float | None = None

    def note(self, work: float, seconds: float) -> None:
        """Takes a run of so much `work` that took `seconds`. One without work says nothing."""
        if work:
            latest = seconds / work
            before = latest if self._per_work is None else self._per_work
            self._per_work = before + WEIGHT * (latest - before)

    def seconds(self, work: float) -> float:
        """The predicted seconds of so much `work`; 0 as long as nothing has run."""
        return (self._per_work or 0.0) * work
