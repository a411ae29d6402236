"""In which order units become resident, so that those which are not stream evenly while all compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def spread(sizes: Sequence[int]) -> list[int]:
    """Indices of units that take equally long to compute; for every prefix, the bytes of the others come evenly.

    A link that lags behind at large units next to each other and idles at small ones is as good as slower (simulated of
    klein-9B's double and single blocks, where as much streams as is hidden: 12 % of a step). So next is always the unit
    without which the bytes that have streamed until each use stray least from their share, over all passes, which come
    without a pause; among equals by the index's reversed bits (van der Corput).
    """
    count, streamed = len(sizes), torch.tensor(sizes, dtype=torch.int64)
    until = torch.ones(count, count, dtype=torch.int64).tril()
    share = torch.arange(1, count + 1)
    left, order = _reversed_bits(count), []
    while left:
        without = streamed.repeat(len(left), 1)
        without[range(len(left)), left] = 0
        ahead = count * without @ until.T - without.sum(1, keepdim=True) * share
        straying = (ahead.amax(1) - ahead.amin(1)).tolist()
        order.append(left.pop(straying.index(min(straying))))
        streamed[order[-1]] = 0
    return order


def _reversed_bits(count: int) -> list[int]:
    bits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda index: f"{index:0{bits}b}"[::-1])
