"""Numbers as clients write them: in JSON, or as text where their forms and tools have nothing but text."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator

MAX_DIGITS = 300
"""The most digits of a whole number. Every such number is a float too, and Python writes it out without complaint."""
EXACT_FLOATS = 2**53
"""Whole floats are exact up to it."""


def whole(value: object) -> int:
    """A whole number such as 4, 4.0, "4" or "4.0"; true and false are none. Raises ValueError."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([+-]?[0-9]{1,300})(?:\.0{0,300})?\s*", value)):
        return int(match[1])
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_FLOATS:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


def real(value: object) -> float:
    """A finite number such as 4, 4.5 or "4.5"; true and false are none. Raises ValueError."""
    pattern = r"\s*[+-]?([0-9]{1,300}(\.[0-9]{0,300})?|\.[0-9]{1,300})([eE][+-]?[0-9]{1,3})?\s*"
    if isinstance(value, str) and re.fullmatch(pattern, value):
        value = float(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("must be a number")
    return float(value)


def from_digits(digits: str) -> int | float:
    """The number that JSON writes in `digits`. One of more than MAX_DIGITS is infinite, so that whoever reads the field
    refuses it by name; Python itself would refuse to read the whole body."""
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


Whole = Annotated[int, BeforeValidator(whole)]
Real = Annotated[float, BeforeValidator(real)]
