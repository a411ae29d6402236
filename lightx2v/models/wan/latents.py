"""Conversion of Wan's latents between the grid of convolutions and the tokens that cross the border of a stage."""

from __future__ import annotations

import torch

from lightx2v.core import Latents


def to_grid(latents: Latents) -> torch.Tensor:
    """[channels, frames, rows, columns], always contiguous, because convolutions round by the order in memory."""
    shape = (latents.frames, latents.rows, latents.columns)
    return latents.tokens.transpose(0, 1).contiguous().unflatten(1, shape)


def to_latents(grid: torch.Tensor) -> Latents:
    """The inverse of `to_grid`."""
    _, frames, rows, columns = grid.shape
    return Latents(grid.flatten(1).transpose(0, 1), rows, columns, frames)
