"""Quantises matrices to 8 bits (e4m3), with one scale per row."""

from __future__ import annotations

from typing import NamedTuple

import torch

MOST = torch.finfo(torch.float8_e4m3fn).max
LEAST = 1e-12
"""Lower bound of a row's largest value, so that a row of zeros stays zero."""


class Rows(NamedTuple):
    """A quantised matrix: about codes * scales."""

    codes: torch.Tensor
    """float8_e4m3fn [rows, columns]."""
    scales: torch.Tensor
    """fp32 [rows, 1]."""


def quantise(matrix: torch.Tensor) -> Rows:
    """Quantises `matrix`, [rows, columns]: each row is scaled so that its largest value is the type's largest.

    The error of a value is at most 2^-4 of it, or 2^-10 of its row's scale if that is more. bf16 has the range of fp32
    and is divided in bf16, in half the memory: this adds 2^-7 of the value. A value that is not finite spoils its row.

    The scale is a product with 1 / MOST, because GPUs turn a division by MOST into that. A scale that differs in its
    last bit rounds values halfway between two codes, of which float16 has many, the other way.
    """
    largest = matrix.abs().amax(dim=-1, keepdim=True).float()
    scales = (largest.clamp(min=LEAST) * (1 / MOST)).to(torch.promote_types(matrix.dtype, torch.bfloat16))
    return Rows((matrix / scales).to(torch.float8_e4m3fn), scales.float())
