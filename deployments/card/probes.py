"""What the driver knows of a card: its size, and which process holds how much of it."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

from lightx2v.weights.emulated_card import EmulatedCard
from lightx2v.weights.host_memory import total_host_memory

CPU_CARD = "cpu-"
"""The id of a cpu card is this and its node's id; any other id is a GPU's uuid."""


class Probe(Protocol):
    """The driver's view of one card."""

    def total(self) -> int:
        """Bytes of memory."""

    def used(self) -> dict[int, int]:
        """Bytes by pid, of every process that the driver lists. Raises OSError if it does not answer."""


class EmulatedProbe:
    """Host memory that plays a card's part."""

    def __init__(self, card_id: str) -> None:
        self._card = EmulatedCard(card_id, 0)

    def total(self) -> int:
        return total_host_memory()

    def used(self) -> dict[int, int]:
        return self._card.used()


class NvmlProbe:
    """A GPU, by its uuid."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid

    def total(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).total)

    def used(self) -> dict[int, int]:
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError as error:
            raise OSError(f"the driver does not tell who uses {self._uuid}: {error}") from error
        return {process.pid: int(process.usedGpuMemory or 0) for process in processes}

    @cached_property
    def _nvml(self) -> Any:
        import pynvml

        pynvml.nvmlInit()
        return pynvml

    @cached_property
    def _handle(self) -> Any:
        return self._nvml.nvmlDeviceGetHandleByUUID(self._uuid)


def open_probe(card_id: str) -> Probe:
    """The probe of a card, by its id."""
    return EmulatedProbe(card_id) if card_id.startswith(CPU_CARD) else NvmlProbe(card_id)
