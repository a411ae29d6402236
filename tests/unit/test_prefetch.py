"""Whose weights come ahead, into which memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightx2v.residency.lease import Fetch, Granted, Shrink, Wish
from lightx2v.residency.ledger import Ledger
from lightx2v.types import StageName
from tests.unit.ledgers import ask, grant, holder, need, shrinks

ONCE: tuple[StageName, ...] = ("encode", "denoise", "decode")
Three = tuple[int, int, int]
WISHES = st.builds(
    lambda keep, more, beside: Wish(min(50, keep + more), beside, keep),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(0, 20),
)


def three(budget: int, last: StageName, kept: Three = (0, 0, 0), at_rest: Three = (0, 0, 0)) -> Ledger:
    """Encoder, transformer and decoder of 50 bytes each, of which `last` has just run; each wishes for all of its
    weights, of which the plan keeps so many, and needs 10 bytes beside them."""
    ledger = Ledger(budget, "e1")
    resting = dict(zip(ONCE, at_rest, strict=True))
    for stage, weights in resting.items():
        ledger.join(holder(stage, stage, reachable=50), weights)
    ledger.release(grant(ledger, last, need(resting[last])).id, resting[last], "e1")
    for name, keep in zip(ONCE, kept, strict=True):
        ledger.expect(name, Wish(50, 10, keep))
    return ledger


def fetches(ledger: Ledger) -> list[tuple[str, int]]:
    events = ledger.advance(0.0)
    assert all(isinstance(event, Fetch) for event in events)
    return [(event.holder, event.weights) for event in events if isinstance(event, Fetch)]


@pytest.mark.parametrize(
    ("budget", "last", "expected"),
    [
        (160, "decode", [("encode", 50), ("denoise", 50), ("decode", 50)]),
        (130, "encode", [("denoise", 50), ("decode", 30)]),
        (90, "decode", [("encode", 40)]),
        (70, "denoise", [("decode", 20)]),
        (59, "decode", [("encode", 9)]),
        (50, "decode", []),
    ],
)
def test_who_runs_next_fetches_first_and_leaves_room_for_its_run(
    budget: int, last: StageName, expected: list[tuple[str, int]]
) -> None:
    at_rest: Three = (40, 0, 0) if last != "decode" else (0, 0, 40)
    assert fetches(three(budget, last, at_rest=at_rest)) == expected


@pytest.mark.parametrize(
    ("budget", "kept", "expected"),
    [
        (110, (0, 40, 20), [("encode", 40), ("denoise", 40), ("decode", 20)]),
        (80, (0, 40, 20), [("encode", 10), ("denoise", 40), ("decode", 20)]),
        (70, (0, 40, 20), [("denoise", 40), ("decode", 20)]),
        (70, (30, 40, 0), [("encode", 30), ("denoise", 30)]),
    ],
)
def test_what_the_plan_keeps_comes_before_what_is_placed_for_a_run(
    budget: int, kept: Three, expected: list[tuple[str, int]]
) -> None:
    assert fetches(three(budget, "decode", kept)) == expected


def test_nothing_is_set_aside_for_who_could_not_use_it() -> None:
    ledger = three(80, "decode", (0, 40, 20))
    orders = {event.holder: event for event in ledger.advance(0.0) if isinstance(event, Fetch)}
    ledger.resized("denoise", 0, "e1", orders["denoise"].id)
    ledger.resized("encode", 10, "e1", orders["encode"].id)
    assert fetches(ledger) == [("encode", 50)]


def test_who_gave_way_is_offered_again() -> None:
    ledger = three(110, "denoise", (0, 50, 0), (0, 30, 50))
    (fetch,) = [event for event in ledger.advance(0.0) if isinstance(event, Fetch)]
    ledger.resized("denoise", 50, "e1", fetch.id)
    ticket = ask(ledger, "decode", need(50, workspace=50))
    (shrink,) = [event for event in ledger.advance(0.0) if isinstance(event, Shrink)]
    ledger.resized("denoise", 10, "e1", shrink.id)
    assert isinstance(ledger.advance(0.0)[0], Granted)
    ledger.release(ticket, 50, "e1")
    assert ("denoise", 50) in fetches(ledger)


@given(st.data())
def test_all_rest_as_planned_once_nobody_runs(data: st.DataObject) -> None:
    """Whatever the runs took, and whenever the next came."""
    wishes = data.draw(st.tuples(*[WISHES] * 3))
    room = max(wish.weights - wish.keep + wish.extra_bytes for wish in wishes)
    budget = sum(wish.keep for wish in wishes) + room + data.draw(st.integers(0, 50))
    ledger = Ledger(budget, "e1")
    for stage, wish in zip(ONCE, wishes, strict=True):
        ledger.join(holder(stage, stage, reachable=50))
        ledger.expect(stage, wish)
    for stage, wish in zip(ONCE * 3, wishes * 3, strict=True):
        run(ledger, stage, wish, data.draw(st.integers(0, budget - wish.weights)))
        if data.draw(st.booleans()):
            obey(ledger)
    obey(ledger)
    for stage, wish in zip(ONCE, wishes, strict=True):
        assert ledger.holders[stage].weights >= wish.keep


def run(ledger: Ledger, stage: StageName, wish: Wish, workspace: int) -> None:
    """All others give way as they are told."""
    ticket = ask(ledger, stage, need(wish.weights, workspace, keep=wish.keep))
    obey(ledger, while_it_runs=ticket)
    ledger.release(ticket, wish.keep, "e1")


def obey(ledger: Ledger, while_it_runs: str | None = None) -> None:
    """Until the ledger has nothing more to say, or has granted this ticket."""
    while events := ledger.advance(0.0):
        for event in events:
            if isinstance(event, Shrink | Fetch):
                ledger.resized(event.holder, event.weights, "e1", event.id)
        ledger.check()
        if any(isinstance(event, Granted) and event.ticket == while_it_runs for event in events):
            break


def test_nobody_fetches_while_somebody_waits() -> None:
    ledger = three(160, "decode")
    ask(ledger, "encode", need(50, workspace=100))
    ask(ledger, "denoise", need(50, workspace=100))
    (event,) = ledger.advance(0.0)
    assert isinstance(event, Granted)


def test_a_run_waits_for_what_its_process_was_told_to_fetch() -> None:
    """Else it could fetch after the run, what by then is another's."""
    ledger = three(100, "decode")
    (fetch,) = [event for event in ledger.advance(0.0) if isinstance(event, Fetch)][:1]
    ask(ledger, "encode", need(50, workspace=10))
    assert ledger.advance(5.0) == []
    ledger.resized("encode", 0, "e1")
    assert ledger.granted >= 50, "a report that nobody asked for is from before"
    ledger.resized("encode", 30, "e1", fetch.id)
    assert any(isinstance(event, Granted) for event in ledger.advance(5.0))


def test_nobody_is_offered_again_what_he_could_not_use() -> None:
    ledger = three(90, "decode")
    (fetch,) = [event for event in ledger.advance(0.0) if isinstance(event, Fetch) and event.holder == "encode"]
    ledger.resized("encode", 17, "e1", fetch.id)
    assert ("encode", fetch.weights) not in fetches(ledger)
    assert ledger.holders["encode"].weights == 17


def test_what_was_fetched_gives_way_like_all_else() -> None:
    ledger = three(110, "decode")
    for event in ledger.advance(0.0):
        assert isinstance(event, Fetch)
        ledger.resized(event.holder, event.weights, "e1", event.id)
    ledger.join(holder("other", "denoise", model="wan"))
    ask(ledger, "other", need(100))
    orders = ledger.advance(0.0)
    assert sum(nbytes for _, nbytes in shrinks(ledger, orders)) == ledger.granted - 10


def test_who_fetches_for_long_is_waited_for() -> None:
    """On CPUs a copy is done when it is sent."""
    ledger = three(160, "decode")
    first, *_ = (event for event in ledger.advance(0.0) if isinstance(event, Fetch))
    ask(ledger, "encode", need(50, workspace=10))
    assert ledger.advance(20.0) == []
    ledger.resized("encode", 50, "e1", first.id)
    assert isinstance(ledger.advance(21.0)[0], Granted)
