"""Matrices in numbers of 8 bits, e4m3, with one scale per row."""

from __future__ import annotations

from typing import NamedTuple

import torch

MOST = torch.finfo(torch.float8_e4m3fn).max
LEAST = 1e-12
"""The least that a row's largest value counts as, so that a row of zeros stays one."""


class Rows(NamedTuple):
    """About codes * scales."""

    codes: torch.Tensor
    """float8_e4m3fn [rows, columns]."""
    scales: torch.Tensor
    """fp32 [rows, 1]."""


def quantise(matrix: torch.Tensor) -> Rows:
    """`matrix`, [rows, columns], each row scaled so that its largest value is the type's largest.

    A value is off by 2^-4 of itself at most, or by 2^-10 of its row's scale if that is more. bf16, which reaches as far
    as fp32, is divided in bf16, in half the memory: 2^-7 of the value is added. What is not finite does not stay alone.

    Multiplied by 1 / MOST, because GPUs would turn a division by MOST into that: a scale that is off by its last bit
    rounds the other way where a value lies halfway between two numbers, as many of float16 do.
    """
    largest = matrix.abs().amax(dim=-1, keepdim=True).float()
    scales = (largest.clamp(min=LEAST) * (1 / MOST)).to(torch.promote_types(matrix.dtype, torch.bfloat16))
    return Rows((matrix / scales).to(torch.float8_e4m3fn), scales.float())
