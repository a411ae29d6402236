"""What the ingress and the stages say to each other besides pictures and latents. Free of torch."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Terms:
    """When a request was admitted (unix seconds), and how many seconds are left to it."""

    admitted_at: float
    seconds: float

    def since(self, start: float) -> Terms:
        """What is left of them now; `start`: monotonic seconds when they held."""
        return replace(self, seconds=self.seconds - (time.monotonic() - start))
