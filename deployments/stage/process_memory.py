"""Measures the memory that a process takes on a GPU besides weights: the driver's count, plus room to grow."""

from __future__ import annotations

import os

import torch

from deployments.card.memory_probe import open_probe
from lightx2v.weights.device import LIBRARY_BYTES, RATE_SCRATCH

TYPICAL = 650 << 20
"""Bytes assumed if the driver does not list our pid, as in a container with a pid namespace of its own."""

FIRST_GROWTH = 256 << 20
"""Bytes by which a CUDA context grows before its first run has ended: kernels are loaded when they are first used."""

LATER_GROWTH = 64 << 20
"""Bytes by which a CUDA context grows after the first run: another size of picture loads other kernels."""

GRAIN = 32 << 20
"""Bytes to which a measurement is rounded up: each change plans the card anew."""


STARTING_BYTES = TYPICAL + FIRST_GROWTH + LIBRARY_BYTES + RATE_SCRATCH
"""Bytes that a process may take until its stage is loaded: its context, and the scratch for measuring the card."""


class ProcessMemory:
    """The memory of this process on one card. Torch's cache must be empty whenever it is measured."""

    def __init__(self, card_id: str) -> None:
        self._probe = open_probe(card_id)
        self._most = 0

    def before_any_run(self) -> int:
        """Bytes to set aside before the first run."""
        torch.empty(1, device="cuda")
        torch.cuda.synchronize()
        held = self._held() or TYPICAL
        return max(0, held - int(torch.cuda.memory_reserved())) + FIRST_GROWTH + LIBRARY_BYTES

    def at_rest(self, weights: int) -> int | None:
        """Bytes to set aside from now on, the libraries' own included; None if the driver does not list our pid.
        `weights`: bytes of weights now on the device."""
        if (held := self._held()) is None:
            return None
        self._most = max(self._most, held - weights)
        return -(-self._most // GRAIN) * GRAIN + LATER_GROWTH

    def _held(self) -> int | None:
        return self._probe.used().get(os.getpid())
