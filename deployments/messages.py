"""Messages between the ingress and the stages, besides pictures and latents. Free of torch."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Terms:
    """The times of a request: when it was admitted (unix seconds), and how many seconds it has left; and its place in
    the order of those that wait."""

    admitted_at: float
    seconds: float
    priority: int = 0
    """Higher goes first."""
    turn: float = 0.0
    """Among equals, lower goes first: the start tag of fair queueing."""

    def since(self, start: float) -> Terms:
        """The terms as they are now, if they were these at `start` (monotonic seconds)."""
        return replace(self, seconds=self.seconds - (time.monotonic() - start))
