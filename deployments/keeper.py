"""Keeps the host copies of stages that died until their successors have attached to them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from lightx2v.weights.shared import used_by


class Keeper:
    """Host copies by name, each held by a file descriptor of this process.

    A copy ends with the last process that has it, and most stages have one replica: without a keeper every restart
    would read all weights from disk again.
    """

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def hold(self, pid: int) -> None:
        """Keeps the copies that this process of the node has."""
        for name, descriptor in used_by(pid).items():
            if name in self._held:
                os.close(descriptor)
            else:
                self._held[name] = descriptor

    def release(self, alive: Iterable[int]) -> None:
        """Closes the copies that none of these processes has."""
        used: set[str] = set()
        for pid in alive:
            for name, descriptor in used_by(pid).items():
                os.close(descriptor)
                used.add(name)
        for name in self._held.keys() - used:
            os.close(self._held.pop(name))
