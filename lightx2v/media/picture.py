"""Uploaded picture files, checked before they are decoded.

Each format is opened by its own class of Pillow, so no decoder that we did not choose ever sees a byte. The settings of
Pillow and Python's warning filters are left alone.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from lightx2v.errors import InvalidRequest
from lightx2v.types import Size

MAX_PICTURE_PIXELS = 32_000_000
MAX_JPEG_SCANS = 64
"""Encoders write up to 12. A progressive file of thousands, each nearly empty, would decode for minutes."""


def decode_picture(data: bytes, param: str = "image") -> Image.Image:
    """The first frame of an uploaded picture: RGB, upright, without colour profile and alpha.

    The size in the header is checked before memory for the pixels is taken. Raises InvalidRequest, naming `param`, for
    what is no readable picture of an allowed size.
    """
    try:
        if data[:4] == b"RIFF":  # opening such a file would already allocate two canvases
            _check_size(_webp_size(data), param)
        picture = _open(data)
        _check_size(Size(*picture.size), param)
        ImageOps.exif_transpose(picture, in_place=True)
        return _rgb(picture)
    except InvalidRequest:
        raise
    except Exception as error:  # Pillow fails on hostile bytes with a dozen types, from SyntaxError to struct.error
        raise InvalidRequest(f"{param}: not a readable PNG, JPEG or WEBP picture", param) from error


def _open(data: bytes) -> Image.Image:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(BytesIO(data))
    if data.startswith(b"\xff\xd8\xff") and data.count(b"\xff\xda") <= MAX_JPEG_SCANS:
        return JpegImageFile(BytesIO(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile(BytesIO(data))
    raise ValueError("no signature that is known")


def _check_size(size: Size, param: str) -> None:
    if not 0 < size.width * size.height <= MAX_PICTURE_PIXELS:
        raise InvalidRequest(f"{param}: a picture of {size}; allowed are 1 to {MAX_PICTURE_PIXELS} pixels", param)


def _webp_size(data: bytes) -> Size:
    kind = data[12:16]
    if kind == b"VP8X":
        return Size(*(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)))
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return Size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        return Size(*(int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28)))
    raise ValueError("no chunk of an image first")


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # Pillow would clip it at 255, which is almost all white
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "P":  # through RGBA, because Pillow warns about transparent palettes
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
