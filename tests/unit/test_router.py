"""The router's choices, against looking at every card."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightx2v.residency.router import Router

SIZES = {"a": 60, "b": 50, "c": 40}


def router(cards: int, room: int = 100) -> Router:
    return Router(dict.fromkeys(range(cards), (room, SIZES)), link=100.0)


def test_requests_spread_over_idle_cards() -> None:
    routing = router(3)
    assert sorted(routing.route("a", 10.0) for _ in range(3)) == [0, 1, 2]


def test_a_card_that_holds_the_model_comes_first_unless_the_switch_is_shorter_than_the_wait() -> None:
    routing = router(2)
    home = routing.route("a", 0.5)
    assert routing.route("a", 0.5) == home, "0.5 s of work before it, 0.6 s for the other card's weights"
    assert routing.route("a", 0.5) != home


def test_what_was_used_longest_ago_is_no_longer_there() -> None:
    """Of 100 bytes, b and c take 90: a has left."""
    routing = router(2)
    first = routing.route("a", 0.0)
    for model in ("b", "c"):
        for _ in range(2):
            routing.route(model, 0.0)
    routing.ended(first, 0.0)
    assert routing._cards[first].warm.keys() != SIZES.keys()


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(KeyError):
        router(1).route("d", 1.0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.booleans()), max_size=60))
def test_the_choice_is_the_least_predicted_finish_of_all_cards(calls: list[tuple[str, int, bool]]) -> None:
    routing = router(4)
    running: list[tuple[int, int]] = []
    for model, seconds, ends in calls:
        finish = {
            card.id: card.load + (0.0 if model in card.warm else SIZES[model] / 100.0)
            for card in routing._cards.values()
        }
        chosen = routing.route(model, seconds)
        assert finish[chosen] == min(finish.values())
        running.append((chosen, seconds))
        if ends:
            routing.ended(*running.pop(0))
