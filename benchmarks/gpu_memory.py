"""Samples a card's memory by the driver's count, over all processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from deployments.card.memory_probe import Probe

SAMPLE_SECONDS = 0.05


class Watch:
    """Samples a card at 20 Hz until the block ends. What the driver refuses to tell is raised then."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self.peak = 0

    def __enter__(self) -> Watch:
        self._watching = self._pool.submit(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watching.result()
        self._pool.shutdown()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, sum(self._probe.used().values()))


def contexts(card: dict[str, Any], used: dict[int, int]) -> int:
    """Bytes that the stages of a `GET /v1/residency` hold at rest beside weights. `used`: the driver's count by pid;
    where it lists other pids than ours, what the stages set aside is taken."""
    return sum(_context(stage, used.get(stage["pid"])) for stage in card["stages"])


def _context(stage: dict[str, Any], used: int | None) -> int:
    reserved: int = stage["context_bytes"]
    return min(reserved, used - stage["resident_bytes"]) if used else reserved
