"""Adaptive layer normalisation: shift, scale and gate computed from the timestep."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Shift(NamedTuple):
    """The three parts of a modulation, [batch, 1, width] each."""

    shift: torch.Tensor
    scale: torch.Tensor
    gate: torch.Tensor


class Modulation(nn.Module):
    """Linear(SiLU(time)), cut into `sets` triples of shift, scale and gate."""

    def __init__(self, width: int, sets: int) -> None:
        super().__init__()
        self.sets = sets
        self.linear = nn.Linear(width, 3 * sets * width, bias=False)

    def forward(self, time: torch.Tensor) -> tuple[Shift, ...]:
        parts = self.linear(F.silu(time)).unsqueeze(1).chunk(3 * self.sets, dim=-1)
        return tuple(Shift(*parts[3 * index : 3 * index + 3]) for index in range(self.sets))


class ModulatedNorm(nn.Module):
    """The norm before the output: scale and shift, in this order, from Linear(SiLU(time))."""

    def __init__(self, width: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.linear = nn.Linear(width, 2 * width, bias)

    def forward(self, states: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        scale, shift = self.linear(F.silu(time)).unsqueeze(1).chunk(2, dim=-1)
        return modulated_norm(states, shift, scale, self.eps)


def modulated_norm(states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """(1 + scale) * LayerNorm(states) + shift; the norm has no weights of its own."""
    return (1 + scale) * F.layer_norm(states, states.shape[-1:], eps=eps) + shift
