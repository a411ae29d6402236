"""Counts the weight bytes that the stage processes of a card have copied."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransferBytes:
    """Weight bytes that a process has copied since it started: to the device, and back to the host."""

    h2d: int = 0
    d2h: int = 0

    def __add__(self, other: TransferBytes) -> TransferBytes:
        return TransferBytes(self.h2d + other.h2d, self.d2h + other.d2h)


class Transfers:
    """The latest counters of each process by holder id. Those of dead processes stay in the total."""

    def __init__(self) -> None:
        self._living: dict[str, TransferBytes] = {}
        self._dead = TransferBytes()

    @property
    def total(self) -> TransferBytes:
        """The bytes of all processes, dead ones included."""
        return sum(self._living.values(), self._dead)

    def note(self, holder_id: str, transferred: TransferBytes) -> TransferBytes:
        """Replaces the counters of a process; returns the bytes copied since the last ones."""
        before = self._living.get(holder_id, TransferBytes())
        self._living[holder_id] = transferred
        return TransferBytes(transferred.h2d - before.h2d, transferred.d2h - before.d2h)

    def bury(self, holder_id: str) -> None:
        """Moves the counters of a process that is gone to the total of the dead."""
        self._dead += self._living.pop(holder_id, TransferBytes())
