"""What a stage's process has copied."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Moved:
    """Weight bytes that a process has copied since it started."""

    h2d: int = 0
    d2h: int = 0
