"""In which order units become resident, so that those which are not stream evenly while all compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.int64]


def residency_order(sizes: Sequence[int]) -> list[int]:
    """Indices of units that take equally long to compute; for every prefix, the bytes of the others come evenly.

    A link that lags behind at large units next to each other and idles at small ones is as good as slower. So next is
    always the unit without which the bytes that have streamed until each use stray least from their share, over all
    passes, which come without a pause; among equals by the index's reversed bits (van der Corput).
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
    """[index]: without `size` bytes of that unit, how far apart the most and the least lie of what has streamed until
    each use, less its share; times the number of units, so that it is exact."""
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
