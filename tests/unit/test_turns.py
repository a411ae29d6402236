"""Start-time fair queueing: callers who share a server get the same share of it, however much they ask for."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lightx2v.residency.turns import Turns

COSTS = st.floats(0.1, 4.0)


def order(turns: Turns, asked: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Who is served after whom, if all ask at the same time."""
    tagged = [(turns.take(caller, cost), index) for index, (caller, cost) in enumerate(asked)]
    return [asked[index] for _, index in sorted(tagged)]


def test_one_request_beside_a_hundred_waits_for_about_one() -> None:
    turns = Turns()
    many = [turns.take("many", 1.0) for _ in range(100)]
    turns.serve(many[0])
    one = turns.take("one", 1.0)
    assert sum(tag <= one for tag in many) == 1


def test_who_comes_later_has_no_claim_on_the_past() -> None:
    turns = Turns()
    tags = [turns.take("many", 1.0) for _ in range(100)]
    turns.serve(tags[50])
    assert turns.peek("late") == tags[50]


def test_rest_ends_all_debts() -> None:
    turns = Turns()
    for _ in range(100):
        turns.take("many", 1.0)
    turns.rest()
    assert turns.peek("many") == turns.peek("other")


def test_virtual_time_does_not_go_back() -> None:
    turns = Turns()
    turns.serve(5.0)
    turns.serve(3.0)
    assert turns.peek("any") == 5.0


@given(st.lists(COSTS, min_size=1), st.lists(COSTS, min_size=1))
def test_while_both_wait_their_shares_differ_by_no_more_than_one_request_of_each(
    first: list[float], second: list[float]
) -> None:
    """The bound of the paper's theorem 1, of all prefixes in which both still wait."""
    asked = [*(("a", cost) for cost in first), *(("b", cost) for cost in second)]
    served: Counter[str] = Counter()
    left = Counter(caller for caller, _ in asked)
    shares = {"a": 0.0, "b": 0.0}
    for caller, cost in order(Turns(), asked):
        if min(left["a"] - served["a"], left["b"] - served["b"]) == 0:
            break
        served[caller] += 1
        shares[caller] += cost
        assert abs(shares["a"] - shares["b"]) <= max(first) + max(second) + 1e-6


@given(st.lists(st.tuples(st.sampled_from("abc"), COSTS), max_size=40))
def test_a_callers_own_requests_keep_their_order(asked: list[tuple[str, float]]) -> None:
    indexed = [(caller, cost + index * 1e-9) for index, (caller, cost) in enumerate(asked)]
    served = order(Turns(), indexed)
    for caller in "abc":
        assert [one for one in served if one[0] == caller] == [one for one in indexed if one[0] == caller]
