"""Offsets that are given out and taken back in turn, beside a list of what is in use."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from lightx2v.weights.circle import Circle

LARGEST = 30


@given(st.integers(LARGEST, 3 * LARGEST), st.lists(st.integers(0, LARGEST) | st.none()))
def test_nothing_is_given_out_twice(nbytes: int, steps: list[int | None]) -> None:
    """A number asks for so many bytes, None takes back what was given out first."""
    circle, used = Circle(nbytes), deque[tuple[int, int, int]]()
    for asked in steps:
        if asked is None:
            if used:
                circle.give(used.popleft()[2])
        elif (start := circle.take(asked)) is not None:
            assert 0 <= start <= start + asked <= nbytes
            assert all(start + asked <= other or end <= start for other, end, _ in used if other < end and asked)
            used.append((start, start + asked, circle.mark))


@given(st.lists(st.lists(st.integers(1, LARGEST), min_size=1, max_size=6), min_size=1))
def test_a_unit_fits_beside_nothing_wherever_it_begins(units: list[list[int]]) -> None:
    """State by state, in the largest unit's room and one state more: of each comes what fits beside the one before it,
    and the remainder once that is taken back."""
    circle = Circle(max(map(sum, units)) + max(map(max, units)))
    before = circle.mark
    for unit in units:
        left = deque(unit)
        while left and circle.take(left[0]) is not None:
            left.popleft()
        circle.give(before)
        assert all(circle.take(state) is not None for state in left)
        before = circle.mark


@given(st.integers(LARGEST, 3 * LARGEST), st.lists(st.integers(1, LARGEST)))
def test_once_all_is_back_a_whole_fits_again(nbytes: int, sizes: list[int]) -> None:
    circle = Circle(nbytes)
    for size in sizes:
        circle.take(size)
    circle.give(circle.mark)
    assert circle.take(nbytes) == 0
    assert circle.take(1) is None
