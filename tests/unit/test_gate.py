"""Who goes next, and whose run is recalled: each rule by example, on a ledger."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightx2v.residency.gate import Gate
from lightx2v.residency.lease import Granted, Holder, Lease, Recall, Shrink, Work
from lightx2v.residency.ledger import Ledger
from lightx2v.types import STAGES, StageName
from tests.unit.ledgers import ask, holder, need

SLOW = Gate(age_bound=5.0, link=100.0, overhead=0.0, moment=0.0, share=0.1)
"""A switch of 100 bytes takes a second."""


def ledger_of(budget: int, *holders: Holder, gate: Gate = SLOW) -> Ledger:
    ledger = Ledger(budget, "e1", gate=gate)
    for one in holders:
        ledger.join(one)
    return ledger


def two_models() -> Ledger:
    """Both models have all stages; each stage takes the whole card."""
    return ledger_of(100, *(holder(f"{model} {stage}", stage, model) for model in ("a", "b") for stage in STAGES))


def run(ledger: Ledger, name: str, now: float = 0.0, seconds: float = 1.0, jobs: int = 1) -> Lease:
    """A run on the whole card, of which nothing stays."""
    ask(ledger, name, need(100, keep=0), jobs=jobs, seconds=seconds)
    (event,) = ledger.advance(now)
    assert isinstance(event, Granted)
    return event.lease


def following(ledger: Ledger, lease: Lease, now: float) -> list[str]:
    """Who runs, one after another, once this one and each of them has ended."""
    order: list[str] = []
    while True:
        ledger.release(lease.id, 0, "e1")
        granted = [event for event in ledger.advance(now) if isinstance(event, Granted)]
        if not granted:
            return order
        (event,) = granted
        lease = event.lease
        order.append(lease.holder)


def test_a_model_ends_what_it_began_before_the_card_changes_models() -> None:
    ledger = two_models()
    lease = run(ledger, "a encode")
    for name in ("b encode", "a encode", "a denoise", "a decode"):
        if name != "a encode":
            ask(ledger, name, need(100, keep=0), seconds=9.0 if name == "b encode" else 0.1)
    assert following(ledger, lease, 1.0) == ["a decode", "a denoise", "b encode"]


def test_of_other_models_the_one_with_the_most_work_for_its_bytes_goes_first() -> None:
    ledger = ledger_of(100, *(holder(name, model=name) for name in "abc"))
    lease = run(ledger, "a")
    ask(ledger, "b", need(100, keep=0), admitted_at=1.0, jobs=1, seconds=1.0)
    ask(ledger, "c", need(100, keep=0), admitted_at=2.0, jobs=4, seconds=4.0)
    assert following(ledger, lease, 1.0) == ["c", "b"]


def test_what_is_told_of_the_work_later_counts() -> None:
    ledger = ledger_of(100, *(holder(name, model=name) for name in "abc"))
    lease = run(ledger, "a")
    for name in "bc":
        ask(ledger, name, need(100, keep=0), seconds=1.0)
    ledger.waits("c", Work(5, 5.0, 0.0), "e1")
    assert following(ledger, lease, 1.0) == ["c", "b"]


def test_who_has_waited_for_its_bound_goes_first() -> None:
    ledger = ledger_of(100, *(holder(name, model=name) for name in "abc"))
    lease = run(ledger, "a")
    ask(ledger, "b", need(100, keep=0), seconds=0.1)
    ledger.advance(0.0)
    ask(ledger, "c", need(100, keep=0), jobs=9, seconds=9.0)
    ledger.advance(1.0)
    assert following(ledger, lease, 5.0) == ["b", "c"]


def test_a_higher_priority_goes_before_age_and_work() -> None:
    ledger = ledger_of(100, *(holder(name, model=name) for name in "abcd"))
    lease = run(ledger, "a")
    ask(ledger, "b", need(100, keep=0), seconds=0.1, priority=-1)
    ledger.advance(0.0)
    ask(ledger, "c", need(100, keep=0), jobs=9, seconds=9.0)
    ask(ledger, "d", need(100, keep=0), seconds=0.1, priority=1)
    assert following(ledger, lease, 5.0) == ["d", "c", "b"]


@pytest.mark.parametrize(("priority", "is_recalled"), [(1, True), (0, False), (-1, False)])
def test_a_run_is_recalled_for_a_higher_priority(priority: int, is_recalled: bool) -> None:
    ledger = ledger_of(100, holder("a"), holder("b", model="b"))
    lease = run(ledger, "a", seconds=60.0)
    ask(ledger, "b", need(100, keep=0), seconds=60.0, priority=priority)
    assert ledger.advance(0.0) == [Recall("a", lease.id)] * is_recalled


def test_a_waiter_of_lower_priority_recalls_nobody() -> None:
    ledger = ledger_of(100, holder("a"), holder("b", model="b"))
    run(ledger, "a", seconds=60.0, jobs=9)
    ask(ledger, "b", need(100, keep=0), seconds=60.0, priority=-1)
    ledger.advance(0.0)
    assert ledger.advance(6.0) == []


def test_a_run_is_recalled_when_a_waiter_reaches_its_bound() -> None:
    ledger = ledger_of(100, holder("a"), holder("b", model="b"))
    lease = run(ledger, "a", seconds=60.0, jobs=9)
    ask(ledger, "b", need(100, keep=0), seconds=60.0)
    assert ledger.advance(0.0) == []
    assert ledger.next_deadline() == 5.0
    assert ledger.advance(4.9) == []
    assert ledger.advance(5.0) == [Recall("a", lease.id)]
    assert ledger.advance(6.0) == [], "once"
    assert ledger.holders["a"].command == Recall("a", lease.id)
    ledger.release(lease.id, 0, "e1")
    ask(ledger, "a", need(100, keep=0), jobs=9, seconds=55.0)
    (event,) = ledger.advance(6.0)
    assert isinstance(event, Granted)
    assert event.lease.holder == "b", "the recalled one does not take the card back at once"
    assert ledger.holders["a"].command is None


@pytest.mark.parametrize(("jobs", "width", "is_recalled"), [(2, 4, False), (3, 4, True), (3, 2, False)])
def test_a_run_ends_early_for_more_jobs_than_it_takes_if_a_wider_one_would_take_more(
    jobs: int, width: int, is_recalled: bool
) -> None:
    ledger = ledger_of(100, holder("a"))
    ask(ledger, "a", replace(need(100, keep=0), width=2), seconds=60.0)
    (event,) = ledger.advance(0.0)
    assert isinstance(event, Granted)
    for now in (1.0, 2.0):
        ledger.waits("a", Work(jobs, 60.0, 0.0), "e1", replace(need(50, keep=0), width=width))
        assert ledger.advance(now) == [Recall("a", event.lease.id)] * (is_recalled and now == 1.0)


def test_a_run_that_is_about_to_end_is_not_recalled() -> None:
    ledger = ledger_of(100, holder("a"), holder("b", model="b"))
    run(ledger, "a", seconds=60.0)
    ask(ledger, "b", need(100, keep=0), seconds=60.0)
    ledger.advance(0.0)
    ledger.waits("a", Work(1, 1.0, 0.0), "e1")
    assert ledger.advance(5.0) == [], "a switch takes two seconds"
    ledger.waits("a", Work(1, 2.1, 0.0), "e1")
    assert len(ledger.advance(5.0)) == 1


def test_a_long_run_gives_way_to_short_work_once_it_has_lasted_for_ten_switches() -> None:
    """A switch moves 10 bytes to the short one, and 10 that the long one drops and fetches again: 0.2 s."""
    ledger = ledger_of(100, holder("long"), holder("short", "decode", reachable=10))
    ask(ledger, "long", need(100), seconds=600.0)
    (event,) = ledger.advance(0.0)
    assert isinstance(event, Granted)
    ask(ledger, "short", need(10), seconds=0.1)
    assert ledger.advance(0.5) == []
    assert ledger.next_deadline() == 2.0, "earlier than its bound, for the mean wait"
    assert ledger.advance(2.0) == [Recall("long", event.lease.id)]


def test_work_that_is_not_shorter_than_what_is_left_waits_for_its_bound() -> None:
    ledger = ledger_of(100, holder("a"), holder("b", "decode", reachable=10))
    run(ledger, "a", seconds=3.0, jobs=8)
    ask(ledger, "b", need(10), seconds=1.0)
    ledger.advance(0.5)
    assert ledger.next_deadline() == 5.5


def test_what_fits_beside_a_run_is_granted_and_nobody_is_recalled() -> None:
    ledger = ledger_of(100, holder("long"), holder("short", "decode", reachable=10))
    ask(ledger, "long", need(80), seconds=600.0)
    ledger.advance(0.0)
    ask(ledger, "short", need(10), seconds=0.1)
    (event,) = ledger.advance(0.0)
    assert isinstance(event, Granted)


def test_a_model_that_runs_keeps_its_idle_weights_from_others_until_their_bound() -> None:
    """Else two models that take turns evict each other's stages at every step of the way."""
    names: tuple[StageName, ...] = ("encode", "denoise")
    ledger = ledger_of(100, *(holder(stage, stage) for stage in names), holder("other", "encode", model="b"))
    ask(ledger, "encode", need(40))
    (event,) = ledger.advance(0.0)
    assert isinstance(event, Granted)
    ledger.release(event.lease.id, 40, "e1")
    ask(ledger, "denoise", need(50), seconds=0.5)
    ledger.advance(0.0)
    ask(ledger, "other", need(40), seconds=0.5)
    assert ledger.advance(0.0) == []
    (command,) = ledger.advance(5.0)
    assert isinstance(command, Shrink)
    assert command.holder == "encode"


def test_an_unmeasured_job_counts_as_one_unit() -> None:
    ledger = ledger_of(100, *(holder(name, model=name) for name in "abc"))
    lease = run(ledger, "a", seconds=0.0)
    ask(ledger, "b", need(100, keep=0), jobs=1)
    ask(ledger, "c", need(100, keep=0), jobs=2)
    assert following(ledger, lease, 1.0) == ["c", "b"]


def test_who_has_little_time_left_waits_for_half_of_it() -> None:
    ledger = ledger_of(100, holder("a"), holder("b", model="b"))
    lease = run(ledger, "a", seconds=60.0, jobs=9)
    ask(ledger, "b", need(100, keep=0), deadline=6.0, seconds=60.0)
    assert ledger.advance(0.0) == []
    assert ledger.next_deadline() == 3.0
    assert ledger.advance(3.0) == [Recall("a", lease.id)]


@pytest.mark.parametrize(("stage", "jobs", "is_kept"), [("encode", 1, True), ("decode", 2, True), ("decode", 1, False)])
def test_a_model_whose_work_is_about_to_come_keeps_the_card_for_a_moment(
    stage: StageName, jobs: int, is_kept: bool
) -> None:
    """The next stage's request is on its way, or the next ones of several callers. One caller alone delays nobody."""
    names: tuple[StageName, ...] = ("encode", "decode")
    own = [holder(one, one) for one in names]
    ledger = ledger_of(100, *own, holder("other", model="b"), gate=replace(SLOW, moment=1.0))
    ask(ledger, stage, need(100), jobs=jobs, seconds=1.0)
    (event,) = ledger.advance(0.0)
    assert isinstance(event, Granted)
    ask(ledger, "other", need(100), seconds=1.0)
    ledger.advance(0.0)
    ledger.release(event.lease.id, 100, "e1")
    assert bool(ledger.advance(2.0)) is not is_kept
    if is_kept:
        assert ledger.next_deadline() == 3.0
        assert len(ledger.advance(3.0)) == 1


def test_who_made_a_run_end_goes_before_what_is_left_of_it() -> None:
    """Even though the other model ran last, and nobody has reached the bound."""
    ledger = ledger_of(100, holder("long"), holder("short", model="b", reachable=10))
    ask(ledger, "long", need(100), seconds=600.0)
    (event,) = ledger.advance(0.0)
    assert isinstance(event, Granted)
    ask(ledger, "short", need(10), seconds=0.1)
    ledger.advance(0.0)
    assert ledger.advance(2.0) == [Recall("long", event.lease.id)]
    ledger.release(event.lease.id, 100, "e1")
    ask(ledger, "long", need(100), seconds=598.0)
    assert [command.holder for command in ledger.advance(2.0) if isinstance(command, Shrink)] == ["long"]
