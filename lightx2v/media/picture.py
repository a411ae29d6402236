"""Uploaded pictures as pixels, upright and of a bounded size. The settings of Pillow and Python's warning filters are
left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageOps
from PIL.PngImagePlugin import PngImageFile

from lightx2v.errors import InvalidRequest
from lightx2v.media.picture_file import open_picture

MAX_WHOLE_PIXELS = 32_000_000
"""A larger picture is halved on each side. No model keeps more than 2048 x 2048 pixels of a reference."""

BACKGROUND = (255, 255, 255)
"""The colour that shows through transparent pixels, as in most viewers."""

KEY_SCALES = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}
"""The factor from a transparent colour in a PNG file to Pillow's pixels, by the layout of the file's pixels."""


def decode_picture(data: bytes, param: str = "image") -> Image.Image:
    """The first frame of an uploaded picture: RGB, upright, without colour profile; transparent pixels on white.

    Colours under transparent pixels are not visible, and often black or garbage. Raises InvalidRequest, naming `param`,
    for what is no readable picture of an allowed size.
    """
    with _refusing(param):
        picture, is_large = _upright(data, param)
        visible = _on_background(picture)
        return visible.reduce(2) if is_large else visible


def decode_alpha(data: bytes, param: str = "image") -> npt.NDArray[np.uint8] | None:
    """The opacity of an uploaded picture, uint8 [height, width], as `decode_picture` turns and halves it; None if the
    picture has no transparency. Raises InvalidRequest as `decode_picture` does."""
    with _refusing(param):
        picture, is_large = _upright(data, param)
        alpha = _alpha(picture)
        return None if alpha is None else np.asarray(alpha.reduce(2) if is_large else alpha)


@contextmanager
def _refusing(param: str) -> Iterator[None]:
    """Raises InvalidRequest where the body fails."""
    try:
        yield
    except InvalidRequest:
        raise
    except Exception as error:  # Pillow fails on hostile bytes with a dozen types, from SyntaxError to struct.error
        raise InvalidRequest(f"{param}: not a readable PNG, JPEG, WEBP or AVIF picture", param) from error


def _upright(data: bytes, param: str) -> tuple[Image.Image, bool]:
    """The decoded picture in its own mode, and whether it is still to be halved. A large JPEG is halved while it is
    decoded."""
    picture = open_picture(data, param)
    width, height = picture.size
    if width * height > MAX_WHOLE_PIXELS:
        picture.draft(None, (width // 2, height // 2))
    _scale_key(picture)
    ImageOps.exif_transpose(picture, in_place=True)
    decoded: Image.Image = picture.convert("RGBA") if picture.mode == "P" else picture
    return decoded, picture.width * picture.height > MAX_WHOLE_PIXELS


def _scale_key(picture: Image.Image) -> None:
    """Brings the transparent colour of a PNG to the values that Pillow's pixels will have."""
    if isinstance(picture, PngImageFile) and "transparency" in picture.info:
        scale = KEY_SCALES.get(str(picture.tile[0].args))
        if scale is not None:
            picture.info["transparency"] = np.multiply(picture.info["transparency"], scale).astype(int)


def _on_background(picture: Image.Image) -> Image.Image:
    """The picture in RGB, over the background where it is transparent."""
    alpha = _alpha(picture)
    colours = _rgb(picture)
    if alpha is not None:
        colours.paste(BACKGROUND, mask=ImageChops.invert(alpha))
    return colours


def _alpha(picture: Image.Image) -> Image.Image | None:
    """The opacity of each pixel in mode L; None for a picture without transparency. In grey and RGB one colour may be
    transparent, the key."""
    if "A" in picture.getbands():
        return picture.getchannel("A")
    key = picture.info.pop("transparency", None)  # or Pillow would convert it with the colours
    if key is None:
        return None
    pixels = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    differs = np.atleast_3d(pixels != np.asarray(key)).any(axis=2)
    return Image.fromarray(np.where(differs, np.uint8(255), np.uint8(0)))


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # Pillow would clip it at 255, which is almost all white
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")
