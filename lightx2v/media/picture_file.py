"""The formats of uploaded pictures. Each is opened by its own class of Pillow, so no decoder that we did not choose
ever sees a byte."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from types import MappingProxyType

from PIL import Image, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from lightx2v.errors import InvalidRequest
from lightx2v.types import Size

MAX_PICTURE_PIXELS = 1 << 26
"""67 million pixels, so that the photos of a 64 MP camera pass."""
MAX_JPEG_SCANS = 64
"""Encoders write up to 12. A progressive file of thousands, each nearly empty, would decode for minutes."""

UNREADABLE: Mapping[bytes, str] = MappingProxyType(
    {
        b"GIF8": "GIF",
        b"BM": "BMP",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
        b"II+\0": "TIFF",
        b"MM\0+": "TIFF",
        b"8BPS": "Photoshop",
        b"\0\0\1\0": "ICO",
        b"\xff\x0a": "JPEG XL",
        b"\0\0\0\x0cJXL ": "JPEG XL",
        b"\0\0\0\x0cjP  ": "JPEG 2000",
        b"\xff\x4f\xff\x51": "JPEG 2000",
        b"<svg": "SVG",
        b"<?xml": "SVG",
        b"%PDF": "PDF",
    }
)
"""Formats that are refused by name, by the first bytes of their files."""

AVIF = frozenset({b"avif", b"avis"})
HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
"""Brands of ISO media files; those of HEIC also begin a file of another codec, unless it names AVIF too."""


def open_picture(data: bytes, param: str) -> Image.Image:
    """The picture of a file, its pixels not decoded yet. The size in the header is checked before memory for the pixels
    is taken.

    Raises InvalidRequest, naming `param`, for a format that is not read and for a size beyond MAX_PICTURE_PIXELS; or an
    error of Pillow's.
    """
    if data[:4] == b"RIFF":  # opening such a file would already allocate two canvases
        _check_size(_webp_size(data), param)
    picture = _open(data, param)
    _check_size(Size(*picture.size), param)
    return picture


def _open(data: bytes, param: str) -> Image.Image:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(BytesIO(data))
    if data.startswith(b"\xff\xd8\xff") and data.count(b"\xff\xda") <= MAX_JPEG_SCANS:
        return JpegImageFile(BytesIO(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile(BytesIO(data))
    name = _media_name(data) or next((name for begin, name in UNREADABLE.items() if data.startswith(begin)), None)
    if name == "AVIF" and features.check("avif"):
        return AvifImageFile(BytesIO(data))
    if name is not None:
        raise InvalidRequest(f"{param}: {name} pictures are not read; save it as PNG, JPEG or WEBP", param)
    raise ValueError("no signature that is known")


def _media_name(data: bytes) -> str | None:
    """AVIF or HEIC, by the brands in the first box of an ISO media file; None for other files."""
    if data[4:8] != b"ftyp":
        return None
    box = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    brands = {box[at : at + 4] for at in range(0, len(box), 4)}
    return "AVIF" if brands & AVIF else "HEIC" if brands & HEIC else None


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
