"""The speed that the requests of a model tell."""

from __future__ import annotations

from lightx2v.residency.speed import MOST_CHANGE, Speed


def test_one_measurement_changes_what_is_known_by_a_bounded_factor() -> None:
    speed = Speed()
    speed.note_alone(1.0, 1.0)
    speed.note_shared(1000.0, 1.0)
    assert speed.shared == MOST_CHANGE
    speed.note_alone(1000.0, 1.0)
    assert speed.alone is not None
    assert speed.alone < MOST_CHANGE


def test_a_faster_request_counts_at_once() -> None:
    speed = Speed()
    for seconds in (9.0, 9.0, 2.0):
        speed.note_alone(2 * seconds, 2.0)
    assert speed.alone == 2.0
    speed.note_inside(1.0, 1.0)
    speed.note_inside(50.0, 1.0)
    assert speed.alone == 1.0


def test_a_backlog_drains_at_least_as_fast_as_one_request_after_the_other() -> None:
    """Otherwise a slow period would let in one at a time for good, and nothing would tell that it is over."""
    speed = Speed()
    speed.note_shared(20.0, 1.0)
    assert speed.alone == speed.shared == 20.0
    speed.note_alone(1.0, 1.0)
    assert speed.alone == speed.shared == 1.0
