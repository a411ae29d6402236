"""Which units stream, and how evenly."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightx2v.weights.placement_order import placement_order

KLEIN_9B = [2] * 8 + [1] * 24
"""Double and single blocks, in units of 437 MB."""


@given(st.integers(1, 70))
def test_equal_units_that_stream_lie_evenly(count: int) -> None:
    order = placement_order([1] * count)
    assert sorted(order) == list(range(count))
    for taken in range(1, count + 1):
        streamed = sorted(set(range(count)) - set(order[:taken]))
        longest = max((len(run) for run in runs(streamed)), default=0)
        assert longest <= 2 * (-(-len(streamed) // taken)) + 1


def runs(numbers: list[int]) -> list[list[int]]:
    """Stretches of consecutive numbers."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1].append(number)
        else:
            found.append([number])
    return found


@pytest.mark.parametrize("taken", range(4, 32))
def test_large_units_leave_first_until_bytes_come_evenly(taken: int) -> None:
    """A quarter of the blocks hold 40 % of the bytes. No more than two of those come early or late over a pass."""
    order = placement_order(KLEIN_9B)
    streamed = [0 if index in order[:taken] else size for index, size in enumerate(KLEIN_9B)]
    share = sum(streamed) / len(streamed)
    ahead = [until - share * (index + 1) for index, until in enumerate(accumulate(streamed))]
    assert max(ahead) - min(ahead) <= 4
