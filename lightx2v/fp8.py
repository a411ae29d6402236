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

    A value of which not less than 2^-14 of that is left is off by 2^-4 of itself at most; others by 2^-10 / 448 of the
    row's largest. What is not finite makes its row so.
    """
    scales = matrix.abs().amax(dim=-1, keepdim=True).float().clamp(min=LEAST) / MOST
    return Rows((matrix / scales).to(torch.float8_e4m3fn), scales)
