"""Pictures as Qwen2.5-VL reads them: as patches, and as tokens at positions within a text. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling

from lightx2v.core import Picture
from lightx2v.models.colours import to_colours


class Grid(NamedTuple):
    """Rows and columns."""

    rows: int
    columns: int


class Mixed(NamedTuple):
    """A text with pictures in it."""

    ids: torch.Tensor
    """[1, tokens]."""
    positions: torch.Tensor
    """[3, 1, tokens]: in time, height and width."""
    pictured: torch.Tensor
    """[tokens], whether a token is a picture's."""


def to_patches(picture: Picture, side: int, merge: int, frames: int) -> tuple[torch.Tensor, Grid]:
    """fp32 [rows * columns, 3 * frames * side^2]: the patches of a video of `frames` equal frames, and their grid.

    The picture's sides are rounded to whole squares of `merge` by `merge` patches; those of a square follow each other.
    """
    cell = side * merge
    grid = Grid(*(merge * round(pixels / cell) for pixels in (picture.size.height, picture.size.width)))
    size = grid.columns * side, grid.rows * side
    colours = to_colours(np.asarray(Image.fromarray(picture.pixels).resize(size, Resampling.BICUBIC)))
    squares = colours.view(grid.rows // merge, merge, side, grid.columns // merge, merge, side, 3)
    patches = squares.permute(0, 3, 1, 4, 6, 2, 5).flatten(0, 3)
    return patches[:, :, None].expand(-1, -1, frames, -1, -1).flatten(1), grid


def mix(ids: Sequence[int], pad: int, grids: Sequence[Grid]) -> Mixed:
    """A text with pictures in it. The first pads of `ids` stand for the pictures; each becomes one pad for every token
    of its picture. Further pads are a user's own and stand for nothing. A token of text advances on all axes, as a
    picture of one by one does."""
    pictures = iter(grids)
    mixed: list[int] = []
    pictured: list[bool] = []
    positions: list[torch.Tensor] = []
    start = 0
    for token in ids:
        grid = next(pictures, None) if token == pad else None
        rows, columns = grid or (1, 1)
        mixed += [token] * (rows * columns)
        pictured += [grid is not None] * (rows * columns)
        positions.append(start + torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns)))
        start += max(rows, columns)
    return Mixed(torch.tensor([mixed]), torch.cat(positions).T[:, None], torch.tensor(pictured))
