"""Asks the driver of a card for its size, and for the memory that each process holds."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

from lightx2v.weights.emulated_card import EmulatedCard
from lightx2v.weights.host_memory import total_host_memory

CPU_CARD = "cpu-"
"""Prefix of the id of a CPU card, before its node's id; any other id is a GPU's uuid."""


class Probe(Protocol):
    """The driver's view of one card."""

    def total(self) -> int:
        """The card's memory in bytes."""

    def used(self) -> dict[int, int]:
        """Bytes by pid, for every process that the driver lists. Raises OSError if the driver does not answer."""


class EmulatedProbe:
    """The probe of a card that is emulated in host memory."""

    def __init__(self, card_id: str) -> None:
        self._card = EmulatedCard(card_id, 0)

    def total(self) -> int:
        return total_host_memory()

    def used(self) -> dict[int, int]:
        return self._card.used()


class NvmlProbe:
    """The probe of a GPU, through NVML."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid

    def total(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).total)

    def used(self) -> dict[int, int]:
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError as error:
            raise OSError(f"the driver does not list the processes on {self._uuid}: {error}") from error
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
    """The probe for a card id."""
    return EmulatedProbe(card_id) if card_id.startswith(CPU_CARD) else NvmlProbe(card_id)
