"""Rotary position embedding over several axes, in interleaved pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Rope(NamedTuple):
    """Cosines and sines, fp32 [tokens, 1, head_dim / 2] each, of the angle of every pair of every token. They hold for
    all heads."""

    cos: torch.Tensor
    sin: torch.Tensor

    def to(self, device: torch.device) -> Rope:
        return Rope(self.cos.to(device), self.sin.to(device))


def rope_table(ids: torch.Tensor, axes: Sequence[int], theta: float, precision: torch.dtype = torch.float64) -> Rope:
    """The table of angles id * theta^(-2i / dim), computed in `precision` on the host, so that it is the same for every
    device. `ids`: [tokens, len(axes)] positions; `axes`: how many dimensions of a head turn with each axis."""
    angles = [_angles(ids[:, axis], dim, theta, precision) for axis, dim in enumerate(axes)]
    table = torch.cat(angles, dim=-1).unsqueeze(1)
    return Rope(table.cos().float(), table.sin().float())


def rotate(states: torch.Tensor, rope: Rope) -> torch.Tensor:
    """`states`, [batch, tokens, heads, head_dim], turned pair by pair in fp32 and cast back."""
    real, imaginary = states.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = (real * rope.cos - imaginary * rope.sin, imaginary * rope.cos + real * rope.sin)
    return torch.stack(turned, dim=-1).flatten(-2).to(states.dtype)


def _angles(positions: torch.Tensor, dim: int, theta: float, precision: torch.dtype) -> torch.Tensor:
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=precision) / dim)
    return torch.outer(positions.to(precision), frequencies)
