"""Weights in blocks of a few bits per number, as GGUF files hold them. A row of a matrix is a row of whole blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

PACKINGS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""The types that are supported, by their names in the `gguf` package."""

Unpack = Callable[[torch.Tensor], torch.Tensor]
"""fp32 [rows, columns] of uint8 [rows, bytes]."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How many numbers a block has, and how many bytes."""

    name: str
    numbers: int
    nbytes: int

    def divides(self, columns: int) -> bool:
        """Whether a row of `columns` numbers consists of whole blocks."""
        return columns % self.numbers == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` numbers."""
        return columns // self.numbers * self.nbytes

    def unpacker(self) -> Unpack:
        """The function that unpacks, on any device. diffusers' own, which is imported only where it is needed."""
        from diffusers.quantizers.gguf.utils import dequantize_functions

        dequantise = dequantize_functions[GGMLQuantizationType[self.name]]

        def unpack(packed: torch.Tensor) -> torch.Tensor:
            blocks = packed.reshape(-1, self.nbytes)
            numbers: torch.Tensor = dequantise(blocks, self.numbers, self.nbytes, torch.float32)
            return numbers.reshape(len(packed), -1)

        return unpack


def find_packing(name: str) -> Packing:
    """The packing of this name, one of `PACKINGS`."""
    return Packing(name, *GGML_QUANT_SIZES[GGMLQuantizationType[name]])
