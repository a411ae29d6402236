"""The progress of the requests that run on one card."""

from __future__ import annotations

from collections.abc import Mapping

from lightx2v.types import Progress


class ProgressBoard:
    """The latest progress of each request that a process runs."""

    def __init__(self) -> None:
        self._latest: dict[str, Mapping[str, Progress]] = {}

    def note(self, holder_id: str, progress: Mapping[str, Progress]) -> None:
        """Replaces the progress of the requests that a process runs, by their ids."""
        self._latest[holder_id] = progress

    def forget(self, holder_id: str) -> None:
        """Drops a run that has ended, or whose process has."""
        self._latest.pop(holder_id, None)

    def find(self, request_id: str) -> Progress | None:
        """The progress of a request that runs on this card; None for any other."""
        return next((running[request_id] for running in self._latest.values() if request_id in running), None)
