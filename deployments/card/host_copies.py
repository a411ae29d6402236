"""Keeps the host copies of stages that died until their successors have attached to them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from lightx2v.weights.shared_memory import used_by


class HostCopies:
    """Host copies by name, each kept open by a file descriptor of this process.

    A copy is freed with the last process that has it open, and most stages have one replica. Without a keeper, every
    restart would read all weights from disk again.
    """

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def hold(self, pid: int) -> None:
        """Keeps the copies that the process `pid` of this node has open."""
        for name, descriptor in used_by(pid).items():
            if name in self._held:
                os.close(descriptor)
            else:
                self._held[name] = descriptor

    def release(self, alive: Iterable[int]) -> None:
        """Closes the copies that no process in `alive` has open."""
        used: set[str] = set()
        for pid in alive:
            for name, descriptor in used_by(pid).items():
                os.close(descriptor)
                used.add(name)
        for name in self._held.keys() - used:
            os.close(self._held.pop(name))
