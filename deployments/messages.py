"""Messages between the ingress and the stages, besides pictures and latents. Free of torch."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Terms:
    """The times of a request: when it was admitted (unix seconds), and how many seconds it has left."""

    admitted_at: float
    seconds: float

    def since(self, start: float) -> Terms:
        """The terms as they are now, if they were these at `start` (monotonic seconds)."""
        return replace(self, seconds=self.seconds - (time.monotonic() - start))
