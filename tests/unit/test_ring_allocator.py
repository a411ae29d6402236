"""Offsets that are given out and taken back in turn, beside a list of what is in use."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from lightx2v.weights.ring_allocator import RingAllocator

LARGEST = 30


@given(st.integers(LARGEST, 3 * LARGEST), st.lists(st.integers(0, LARGEST) | st.none()))
def test_nothing_is_given_out_twice(nbytes: int, steps: list[int | None]) -> None:
    """A number asks for so many bytes, None takes back what was given out first."""
    allocator, used = RingAllocator(nbytes), deque[tuple[int, int, int]]()
    for asked in steps:
        if asked is None:
            if used:
                allocator.give(used.popleft()[2])
        elif (start := allocator.take(asked)) is not None:
            assert 0 <= start <= start + asked <= nbytes
            assert all(start + asked <= other or end <= start for other, end, _ in used if other < end and asked)
            used.append((start, start + asked, allocator.mark))


@given(st.lists(st.lists(st.integers(1, LARGEST), min_size=1, max_size=6), min_size=1))
def test_a_unit_fits_beside_nothing_wherever_it_begins(units: list[list[int]]) -> None:
    """State by state, in the largest unit's room and one state more: of each comes what fits beside the one before it,
    and the remainder once that is taken back."""
    allocator = RingAllocator(max(map(sum, units)) + max(map(max, units)))
    before = allocator.mark
    for unit in units:
        left = deque(unit)
        while left and allocator.take(left[0]) is not None:
            left.popleft()
        allocator.give(before)
        assert all(allocator.take(state) is not None for state in left)
        before = allocator.mark


@given(st.integers(LARGEST, 3 * LARGEST), st.lists(st.integers(1, LARGEST)))
def test_once_all_is_back_a_whole_fits_again(nbytes: int, sizes: list[int]) -> None:
    allocator = RingAllocator(nbytes)
    for size in sizes:
        allocator.take(size)
    allocator.give(allocator.mark)
    assert allocator.take(nbytes) == 0
    assert allocator.take(1) is None
