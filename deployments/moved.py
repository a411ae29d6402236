"""What the stage processes of a card have copied."""

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
    """The latest counters of each process, by the ids of the holders; those of the dead stay in the total."""

    def __init__(self) -> None:
        self._living: dict[str, TransferBytes] = {}
        self._dead = TransferBytes()

    @property
    def total(self) -> TransferBytes:
        """Bytes of all processes, also of those that are gone."""
        return sum(self._living.values(), self._dead)

    def note(self, holder_id: str, transferred: TransferBytes) -> TransferBytes:
        """Replaces what was known of this process; returns what has been copied since."""
        before = self._living.get(holder_id, TransferBytes())
        self._living[holder_id] = transferred
        return TransferBytes(transferred.h2d - before.h2d, transferred.d2h - before.d2h)

    def bury(self, holder_id: str) -> None:
        """The process is gone."""
        self._dead += self._living.pop(holder_id, TransferBytes())
