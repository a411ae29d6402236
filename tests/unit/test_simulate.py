"""The simulator, on small cases: what the policy promises holds on the virtual clock."""

from __future__ import annotations

from benchmarks.simulate import GIB, bound, closed_loop, fleet, open_loop
from benchmarks.simulated_models import klein, z_image


def test_eight_clients_reach_the_arithmetic_however_small_the_memory() -> None:
    models = (klein(),)
    for gib in (24, 12, 8):
        figures = closed_loop(gib * GIB, models, 8, seconds=40.0)
        assert figures.per_second > 0.9 * bound(gib * GIB, models, 8)


def test_two_models_take_turns_in_sets() -> None:
    models = (klein(), z_image())
    figures = closed_loop(20 * GIB, models, 8, seconds=60.0)
    assert figures.per_second > 0.9 * bound(20 * GIB, models, 8)


def test_a_lone_request_is_not_delayed() -> None:
    """0.558 s of computation, three hand-overs and three grants."""
    assert closed_loop(32 * GIB, (klein(),), 1, seconds=20.0).worst < 0.558 + 4 * 0.004 + 3 * 0.010 + 0.02


def test_a_load_below_the_bound_is_served() -> None:
    figures = open_loop(12 * GIB, (klein(),), 0.6 * bound(12 * GIB, (klein(),), 8), seconds=60.0)
    assert figures.worst < 20.0


def test_ten_cards_serve_what_comes_in_time() -> None:
    figures = fleet(10, seconds=6.0)
    assert figures.goodput > 0.9 * figures.offered
