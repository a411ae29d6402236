"""The progress of the runs on one card."""

from __future__ import annotations

from lightx2v.types import Progress


class ProgressBoard:
    """The latest progress of each process, which has one run at a time."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[str, Progress]] = {}

    def note(self, holder_id: str, request_id: str, progress: Progress) -> None:
        """Sets the latest progress of the process's run."""
        self._latest[holder_id] = request_id, progress

    def forget(self, holder_id: str) -> None:
        """Drops a run that has ended, or whose process has."""
        self._latest.pop(holder_id, None)

    def find(self, request_id: str) -> Progress | None:
        """The progress of a request that runs on this card; None for any other."""
        return next((progress for running, progress in self._latest.values() if running == request_id), None)
