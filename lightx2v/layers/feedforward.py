"""The gated feed-forward layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class FeedForward(nn.Module):
    """Linear to gate | value, SwiGLU, Linear back."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(width, 2 * hidden, bias=False)
        self.linear_out = nn.Linear(hidden, width, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.linear_out(swiglu(self.linear_in(states)))


def swiglu(states: torch.Tensor) -> torch.Tensor:
    """[..., gate | value] to SiLU(gate) * value."""
    gate, value = states.chunk(2, dim=-1)
    return F.silu(gate) * value
