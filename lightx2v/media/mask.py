"""Masks: the part of a picture that a request makes anew. Free of torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from lightx2v.errors import InvalidRequest
from lightx2v.media.picture import decode_alpha, decode_picture
from lightx2v.types import Mask

EDITED = 128
"""The least grey of a mask that counts as edited."""

MAX_TINT = 64
"""How far the colours of a grey pixel may be apart, as in a photo of low quality."""

FEATHER = 8
"""Pixels from the edge of the mask inwards over which the new picture comes in, so that no seam is seen."""


def decode_mask(data: bytes, param: str = "mask") -> Image.Image:
    """An uploaded mask in greys, 255 where the picture is made anew.

    As OpenAI defines it, that is where the mask is transparent. If no pixel is, it is where the mask is white, as in
    diffusers. Raises InvalidRequest as `decode_picture` does, and for a mask in colours, which is probably a picture
    sent by mistake.
    """
    alpha = decode_alpha(data, param)
    if alpha is not None and 255 - alpha.min() >= EDITED:
        return Image.fromarray(255 - alpha)
    colours = decode_picture(data, param)
    if np.ptp(np.asarray(colours), axis=2).max() > MAX_TINT:
        raise InvalidRequest(f"{param}: must be transparent where the picture is to change, or black and white", param)
    return colours.convert("L")


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
