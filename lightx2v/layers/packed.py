"""Linear layers with packed weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lightx2v.packing import Packing

CHUNK = 1 << 22
"""Numbers that are unpacked at a time where nothing is compiled, because the intermediate results are large."""

INTERMEDIATE_BYTES = 16
"""Bytes per number of the intermediate results: fp32 twice, and bytes. 4 to 11.3 were counted, and a third is to
spare."""


class PackedLinear(nn.Linear):
    """A linear layer whose weight is packed, so that it takes few bytes and few bytes cross the link. Every call
    unpacks it on the device, in fp32, and rounds it to the type of the input.

    `weight` is [out, bytes of a row], int8 because some callers cast their input to a weight's dtype if that is any
    other.
    """

    def __init__(self, linear: nn.Linear, packing: Packing) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        shape = (linear.out_features, packing.row_bytes(linear.in_features))
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.int8, device="meta"), requires_grad=False)
        self.bias = linear.bias
        self._unpack = packing.unpacker()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self._unpacked(states.dtype), self.bias)

    def unpacked_bytes(self, dtype: torch.dtype) -> int:
        """Device bytes that a call takes beside inputs and outputs."""
        numbers = self.in_features * self.out_features
        return dtype.itemsize * numbers + INTERMEDIATE_BYTES * min(CHUNK, numbers)

    def _unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        packed = self.weight.view(torch.uint8)
        if torch.compiler.is_compiling():  # to one kernel without intermediate results
            return self._unpack(packed).to(dtype)
        unpacked = torch.empty(self.out_features, self.in_features, dtype=dtype, device=packed.device)
        rows = max(1, CHUNK // self.in_features)
        for some, into in zip(packed.split(rows), unpacked.split(rows), strict=True):
            into.copy_(self._unpack(some))
        return unpacked
