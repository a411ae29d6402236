"""Reference pictures on their way into a model. Free of torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lightx2v.errors import InvalidRequest
from lightx2v.media.mask import EDITED
from lightx2v.types import Mask, Picture, Reference, Size

if TYPE_CHECKING:
    from PIL import Image

    from lightx2v.models.spec import ModelSpec

REFERENCE_MIN_SIDE = 64
REFERENCE_MAX_ASPECT = 8


def make_reference(image: Image.Image, spec: ModelSpec, mask: Image.Image | None = None) -> Reference:
    """A reference from an opened picture, as the parts of the model take it.

    `mask`: in greys, 255 where the picture is made anew; then the reference gets the size of the picture to be made.
    Raises InvalidRequest if the picture or the mask cannot be used.
    """
    fitted, view = spec.fit_reference(image), spec.encoder_view(image)
    seen = None if view is None else _picture(view)
    if mask is None:
        return Reference(_picture(fitted), seen)
    _check_mask(Size(*mask.size), Size(*image.size), spec)
    canvas, area = (_canvas(one, spec) for one in (fitted, spec.fit_reference(mask)))
    edited = np.asarray(area.convert("L")) >= EDITED
    if not edited.any():
        raise InvalidRequest("mask: it keeps all of the picture; make the part to change transparent, or white", "mask")
    return Reference(_picture(canvas), seen, Mask(edited))


def check_takes_mask(spec: ModelSpec) -> None:
    """Raises InvalidRequest if the model takes no mask."""
    if not spec.takes_mask:
        raise InvalidRequest("mask: this model cannot change only a part of a picture", "mask")


def _check_mask(mask: Size, picture: Size, spec: ModelSpec) -> None:
    check_takes_mask(spec)
    if mask != picture:
        raise InvalidRequest(f"mask: must have the size of the first picture, {picture}, got {mask}", "mask")


def check_reference(size: Size) -> None:
    """Raises InvalidRequest if a side is below 64 pixels or one side is more than 8 times the other."""
    short, long = sorted((size.width, size.height))
    if short < REFERENCE_MIN_SIDE:
        raise InvalidRequest(f"a reference of {size} is too small: a side has at least {REFERENCE_MIN_SIDE}", "image")
    if long > short * REFERENCE_MAX_ASPECT:
        raise InvalidRequest(
            f"a reference of {size} is too elongated: one side may be {REFERENCE_MAX_ASPECT} times the other", "image"
        )


def fit_to_area(image: Image.Image, area: int) -> Image.Image:
    """A reference picture in RGB, shrunk to at most `area` pixels. Raises InvalidRequest as `check_reference` does."""
    from PIL.Image import Resampling

    check_reference(Size(*image.size))
    image = image.convert("RGB")
    scaled = scale_to_area(Size(*image.size), area)
    if scaled == Size(*image.size):
        return image
    return image.resize((scaled.width, scaled.height), Resampling.LANCZOS)


def scale_to_area(size: Size, area: int) -> Size:
    """`size` shrunk to at most `area` pixels, its aspect kept and its sides truncated."""
    if size.width * size.height <= area:
        return size
    scale = math.sqrt(area / (size.width * size.height))
    return Size(int(size.width * scale), int(size.height * scale))


def centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture that is at least as large."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _canvas(fitted: Image.Image, spec: ModelSpec) -> Image.Image:
    """A fitted picture in the size of the picture that is made of it."""
    from PIL.Image import Resampling

    size = spec.edit_size([Size(*fitted.size)])
    if size == Size(*fitted.size):
        return fitted
    return fitted.resize((size.width, size.height), Resampling.LANCZOS)


def _picture(image: Image.Image) -> Picture:
    return Picture(np.asarray(image, dtype=np.uint8))
