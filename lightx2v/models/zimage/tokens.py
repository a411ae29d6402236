"""Latents as a grid and as tokens. A token is a patch, its channels together; FLUX.2 keeps each channel together."""

from __future__ import annotations

import torch


def to_tokens(grid: torch.Tensor, patch: int) -> torch.Tensor:
    """[batch, channels, height, width] to [batch, rows * columns, patch * patch * channels]."""
    patches = grid.unflatten(-1, (-1, patch)).unflatten(2, (-1, patch))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def to_grid(tokens: torch.Tensor, rows: int, columns: int, patch: int) -> torch.Tensor:
    """The reverse of `to_tokens`."""
    patches = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, columns))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
