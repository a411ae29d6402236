"""Pictures and videos as files. The formats are listed once, for the command line and the server alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from types import MappingProxyType
from typing import Any

from PIL import Image

from lightx2v.media.png import encode_png
from lightx2v.media.video import encode_video
from lightx2v.types import Picture, Video


@dataclass(frozen=True, slots=True)
class Format:
    """A file format: the suffixes of its files' names, the usual one first, and the options that Pillow writes it
    with."""

    suffixes: tuple[str, ...]
    media_type: str
    options: Mapping[str, Any] = field(default_factory=dict)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "png": Format((".png",), "image/png"),
        "jpeg": Format((".jpg", ".jpeg"), "image/jpeg", {"quality": 95}),
        "webp": Format((".webp",), "image/webp", {"quality": 95, "method": 2}),
        "mp4": Format((".mp4",), "video/mp4"),
    }
)
"""By name, as the API and Pillow spell it. Pillow writes every picture format but PNG."""

PICTURE_FORMATS = tuple(name for name, made in FORMATS.items() if made.media_type.startswith("image/"))

VIDEO_FORMATS = tuple(name for name, made in FORMATS.items() if made.media_type.startswith("video/"))


def suffixes(names: tuple[str, ...]) -> tuple[str, ...]:
    """All suffixes of the formats called `names`."""
    return tuple(suffix for name in names for suffix in FORMATS[name].suffixes)


def format_of(suffix: str) -> str:
    """The name of the format whose files end in `suffix`, in lower case. Raises KeyError if there is none."""
    return {suffix: name for name, made in FORMATS.items() for suffix in made.suffixes}[suffix]


def encode(made: Picture | Video, name: str) -> bytes:
    """The file of a picture in the format called `name`; of a video always MP4, its only format."""
    if isinstance(made, Video):
        return encode_video(made)
    if name == "png":
        return encode_png(made.pixels)
    buffer = BytesIO()
    Image.fromarray(made.pixels).save(buffer, name, **FORMATS[name].options)
    return buffer.getvalue()
