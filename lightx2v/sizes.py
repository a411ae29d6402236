"""Sizes of pictures as users write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lightx2v.types import Size

PIXELS = re.compile(r"\s*([0-9]{1,6})\s*[x*×]\s*([0-9]{1,6})\s*", re.IGNORECASE)
ASPECT = re.compile(r"\s*([1-9][0-9]{0,3})\s*:\s*([1-9][0-9]{0,3})\s*")


@dataclass(frozen=True, slots=True)
class Aspect:
    """The proportion of width to height, of a picture with as many pixels as the model makes by default."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}:{self.height}"

    def of_area(self, pixels: int) -> Size:
        """The size of about `pixels` pixels, not yet in whole tokens."""
        ratio = self.width / self.height
        return Size(round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio)))


def parse_size(text: str) -> Size | Aspect:
    """The size in a text such as "1024x768", "1024 * 768" or "4:3". Raises ValueError."""
    if match := PIXELS.fullmatch(text):
        return Size(int(match[1]), int(match[2]))
    if match := ASPECT.fullmatch(text):
        return Aspect(int(match[1]), int(match[2]))
    side = {"1K": 1024, "2K": 2048}.get(text.strip().upper())
    pixels = f"{side}x{side}" if side else "1024x768"
    raise ValueError(f"must be WIDTHxHEIGHT in pixels, as in '{pixels}', an aspect, as in '16:9', or 'auto'")
