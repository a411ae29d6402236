"""How far the runs of one card are."""

from __future__ import annotations

from lightx2v.core import Progress


class ProgressBoard:
    """The latest progress of each process, which has one run at a time."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[str, Progress]] = {}

    def note(self, holder_id: str, request_id: str, progress: Progress) -> None:
        """Replaces what was known of the process's run."""
        self._latest[holder_id] = request_id, progress

    def forget(self, holder_id: str) -> None:
        """The run has ended, or its process has."""
        self._latest.pop(holder_id, None)

    def find(self, request_id: str) -> Progress | None:
        """The progress of a request that runs on this card; None for any other."""
        return next((progress for running, progress in self._latest.values() if running == request_id), None)
