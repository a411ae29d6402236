"""Messages between the ingress and the stages, besides pictures and latents. Free of torch."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a request at a stage.

    `admitted_at`: unix seconds. `seconds`: the longest time until its work must have begun; what its work is predicted
    to take is already subtracted from its deadline. `priority`: the higher, the sooner. `turn`: its start tag among
    requests of the same priority (`lightx2v.residency.turns`).
    """

    admitted_at: float
    seconds: float
    priority: int = 0
    turn: float = 0.0

    @property
    def order(self) -> tuple[int, float, float]:
        """Sorts waiting jobs: the least comes first."""
        return -self.priority, self.turn, self.admitted_at

    def since(self, start: float) -> Terms:
        """The terms as they are now, if they were these at `start` (monotonic seconds)."""
        return replace(self, seconds=self.seconds - (time.monotonic() - start))
