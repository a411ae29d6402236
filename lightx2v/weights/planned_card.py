"""A GPU that is only planned for: stages can be weighed on it, from headers and configurations, and not run."""

from __future__ import annotations

import torch

from lightx2v.weights.device import EFFICIENCY, CpuDevice, whole_pages
from lightx2v.weights.host_copy import Source
from lightx2v.weights.layout import Entry, Layout, Unit


class Unread:
    """Weights that were not read: their sizes are known, their values are not."""

    def unit(self, unit: Unit) -> torch.Tensor:
        return torch.empty(unit.nbytes, dtype=torch.uint8, device="meta")

    def state(self, entry: Entry) -> torch.Tensor:
        return torch.empty(entry.shape, dtype=entry.dtype, device="meta")

    def close(self) -> None:
        return None


class PlannedCard(CpuDevice):
    """A GPU of `total` bytes that need not be here. `link`: bytes per second to it. `rate`: operations per second of
    large matrix products in bf16.

    A stage that is built on it has the sizes that it would have on such a GPU, and reads no weights."""

    def __init__(self, total: int, link: float, rate: float) -> None:
        super().__init__()
        self.torch_device = torch.device("cuda")
        self._total, self._link, self._rate = total, link, rate

    def host_source(self, layout: Layout, lazy: bool) -> Source:
        return Unread()

    def cost(self, nbytes: int) -> int:
        return whole_pages(nbytes)

    def overlap_bytes(self, flops: float) -> int:
        return int(self._link * self.seconds(flops))

    def seconds(self, flops: float) -> float:
        """Seconds in which a model computes `flops` operations."""
        return flops / (EFFICIENCY * self._rate)

    def total(self) -> int:
        return self._total
