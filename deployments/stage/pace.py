"""The pace of a stage: the seconds that its work takes, learned from its latest runs."""

from __future__ import annotations

WEIGHT = 0.3
"""The share of the latest run in the average."""


class Pace:
    """An exponential average of seconds per unit of work."""

    def __init__(self) -> None:
        self._seconds_per_unit: float | None = None

    def note(self, units: float, seconds: float) -> None:
        """Takes a run of `units` that took `seconds`. One without work says nothing."""
        if units:
            latest = seconds / units
            before = latest if self._seconds_per_unit is None else self._seconds_per_unit
            self._seconds_per_unit = before + WEIGHT * (latest - before)

    def seconds(self, units: float) -> float:
        """The predicted seconds of `units` of work; 0 as long as nothing has run."""
        return (self._seconds_per_unit or 0.0) * units
