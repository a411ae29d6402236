"""Masks: the part of a picture that a request makes anew. Free of torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightx2v.types import Mask

FEATHER = 8
"""Pixels from the edge of the mask inwards over which the new picture comes in, so that no seam is seen."""


def token_shares(mask: Mask, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """fp32 [rows * columns, 1]: the edited share of each token's pixels. Both sides of the mask are multiples of the
    token's."""
    height, width = mask.edited.shape
    cells = mask.edited.reshape(rows, height // rows, columns, width // columns)
    shares: npt.NDArray[np.float32] = cells.mean(axis=(1, 3), dtype=np.float32)
    return shares.reshape(-1, 1)


def paste(made: npt.NDArray[np.uint8], original: npt.NDArray[np.uint8], mask: Mask) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3]: `original` outside of the mask, exactly, and `made` inside, which comes in over the
    first pixels behind the edge."""
    weights = _weights(mask.edited)[..., None]
    mixed: npt.NDArray[np.float32] = made * weights + original * (np.float32(1) - weights)
    return np.rint(mixed).astype(np.uint8)


def _weights(edited: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """fp32 [height, width]: 0 outside of the mask; inside, the distance from the edge in pixels, as a share of
    FEATHER, up to 1. The border of the picture is no edge."""
    weights = np.zeros(edited.shape, np.float32)
    inner = edited
    for _ in range(FEATHER):
        weights += inner
        inner = _eroded(inner)
    return weights / np.float32(FEATHER)


def _eroded(area: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The pixels whose eight neighbours are all in the area."""
    padded = np.pad(area, 1, mode="edge")
    rows = padded[:-2] & padded[1:-1] & padded[2:]
    return rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
