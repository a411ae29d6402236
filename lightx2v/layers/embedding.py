"""Embeddings of scalars, such as a timestep, as vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

MAX_PERIOD = 10000.0


class ScalarEmbedding(nn.Module):
    """Linear(SiLU(Linear(waves))): [batch, channels] to [batch, width]."""

    def __init__(self, channels: int, width: int, bias: bool = False) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width, bias=bias)
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(waves)))


def sinusoid(values: torch.Tensor, channels: int, scale: float = 1.0) -> torch.Tensor:
    """[batch] to [batch, channels]: cosines, then sines, of scale * (value * 10000^(-i / half)), computed in fp32 and
    cast back. The products are in the order of the reference, whose rounding they keep."""
    half = channels // 2
    exponents = -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = scale * (values.float()[:, None] * exponents.exp())
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(values.dtype)
