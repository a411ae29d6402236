"""Reference pictures on their way into a model. Free of torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lightx2v.errors import InvalidRequest
from lightx2v.types import Picture, Reference, Size

if TYPE_CHECKING:
    from PIL import Image

    from lightx2v.models.spec import ModelSpec

REFERENCE_MIN_SIDE = 64
REFERENCE_MAX_ASPECT = 8


def make_reference(image: Image.Image, spec: ModelSpec) -> Reference:
    """A reference from an opened picture, as the parts of the model take it. Raises InvalidRequest if it cannot be
    used."""
    fitted, view = spec.fit_reference(image), spec.encoder_view(image)
    return Reference(_picture(fitted), None if view is None else _picture(view))


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


def _picture(image: Image.Image) -> Picture:
    return Picture(np.asarray(image, dtype=np.uint8))
