"""GPUs with the figures that a forecast needs. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
GEN4, GEN5 = 25e9, 55e9
"""Bytes per second from pinned memory over 16 lanes of PCIe: 55 GB/s were measured on an H200 and an H100, 25 GB/s is
what published benchmarks of Gen4 cards reach. A card in a slot with 8 lanes gets half."""

DISK = 1.4e9
"""Bytes per second from a disk, as one machine read checkpoints. The page cache is faster, a good NVMe disk too."""


@dataclass(frozen=True, slots=True)
class Card:
    """One kind of GPU."""

    name: str
    memory: int
    """Bytes that the driver reports."""
    rate: float
    """Operations per second of large matrix products in bf16, sums in fp32, without sparsity."""
    link: float
    """Bytes per second from pinned host memory."""
    capability: tuple[int, int]


CARDS = (
    Card("RTX 3090", int(23.69 * GIB), 71e12, GEN4, (8, 6)),
    Card("RTX 4090", int(23.64 * GIB), 165.2e12, GEN4, (8, 9)),
    Card("L4", int(22.03 * GIB), 121e12, GEN4, (8, 9)),
    Card("RTX 5090", int(31.35 * GIB), 209.5e12, GEN5, (12, 0)),
    Card("H100", int(79.1 * GIB), 748e12, GEN5, (9, 0)),
    Card("H200", int(139.8 * GIB), 771e12, GEN5, (9, 0)),
)
"""The rates come from NVIDIA's documents: the GA102, Ada and RTX Blackwell whitepapers, and the L4's data sheet, whose
power limit a long computation does not reach. Those of the H100 and the H200 were measured: products of 4096 x 8192,
and klein-9B's four steps (benchmarks/results)."""
