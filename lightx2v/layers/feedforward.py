"""Feed-forward layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class GeluFeedForward(nn.Module):
    """Linear, GELU, Linear to `output` or back to `width`. Submodules are named as in diffusers."""

    def __init__(self, width: int, hidden: int, output: int | None = None, approximate: str = "tanh") -> None:
        super().__init__()
        back = nn.Linear(hidden, output or width)
        self.net = nn.Sequential(GeluLinear(width, hidden, approximate), nn.Identity(), back)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.net(states)
        return output


class GeluLinear(nn.Module):
    """Linear, then GELU. `approximate`: "tanh" or "none", as in torch."""

    def __init__(self, width: int, hidden: int, approximate: str) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)
        self.approximate = approximate

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.proj(states), approximate=self.approximate)


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
