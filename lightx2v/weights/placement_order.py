"""The order in which units become resident, so that the others stream evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.int64]


def placement_order(sizes: Sequence[int]) -> list[int]:
    """Indices of units, of `sizes` in bytes, in the order in which they become resident. Units take equally long to
    compute. Whatever prefix is resident, the bytes of the others are spread evenly over a pass.

    Adjacent large units stall the link, small ones leave it idle. Greedy: make resident the unit whose removal keeps
    the cumulative streamed bytes closest to a straight line, over passes without a pause between them. Ties go by the
    index's reversed bits (van der Corput).
    """
    left, order = _reversed_bits(len(sizes)), []
    streamed = np.array(sizes, dtype=np.int64)
    while left:
        straying = {size: _straying(streamed, size) for size in {sizes[index] for index in left}}
        order.append(min(left, key=lambda index: straying[sizes[index]][index]))
        left.remove(order[-1])
        streamed[order[-1]] = 0
    return order


def _straying(streamed: Bytes, size: int) -> Bytes:
    """[index]: the range, largest less smallest, of streamed bytes ahead of the straight line when `size` bytes of that
    unit no longer stream. Multiplied by the number of units, so that it is an exact integer."""
    count = len(streamed)
    share = np.arange(1, count + 1) * (streamed.sum() - size)
    ahead = count * streamed.cumsum() - share
    most, least = np.maximum.accumulate, np.minimum.accumulate
    after = most(ahead[::-1])[::-1] - count * size, least(ahead[::-1])[::-1] - count * size
    before = np.r_[after[0][:1], most(ahead)[:-1]], np.r_[after[1][:1], least(ahead)[:-1]]
    return np.asarray(np.maximum(before[0], after[0]) - np.minimum(before[1], after[1]))


def _reversed_bits(count: int) -> list[int]:
    bits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda index: f"{index:0{bits}b}"[::-1])
