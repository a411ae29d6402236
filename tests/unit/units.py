"""Units that belong to no module."""

from __future__ import annotations

from pathlib import Path

import torch

from lightx2v.weights.layout import Entry, Unit, make_unit
from lightx2v.weights.tensor_ref import Span, TensorRef


class Memory:
    """A source of units that nobody binds: of each, the bytes of its states."""

    def __init__(self, blocks: list[list[int]]) -> None:
        self.units = [self._unit(str(block), sizes) for block, sizes in enumerate(blocks)]
        self._bytes = {unit.name: torch.randint(1, 255, (unit.nbytes,), dtype=torch.uint8) for unit in self.units}

    def _unit(self, name: str, sizes: list[int]) -> Unit:
        refs = [TensorRef(Path(), (Span(0, nbytes),), torch.uint8, (nbytes,)) for nbytes in sizes]
        return make_unit(name, 0, [Entry(f"{name}.{index}", ref, torch.uint8) for index, ref in enumerate(refs)])

    def unit(self, unit: Unit) -> torch.Tensor:
        return self._bytes[unit.name]

    def state(self, entry: Entry) -> torch.Tensor:
        raise NotImplementedError

    def close(self) -> None:
        return None
