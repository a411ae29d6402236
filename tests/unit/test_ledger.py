"""The ledger, each rule by example. test_ledger_states.py has all of them at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lightx2v.errors import DeadlineExceeded, OutOfMemory, StaleEpoch
from lightx2v.residency.account import IntegrityError
from lightx2v.residency.lease import Event, Fetch, Granted, Refused, Shrink, Wish, Work
from lightx2v.residency.ledger import Ledger
from tests.unit.ledgers import FAR, ask, grant, holder, ledger_of, need, shrinks


def refusal(events: list[Event]) -> OutOfMemory | DeadlineExceeded:
    (event,) = events
    assert isinstance(event, Refused)
    return event.error


def test_a_lease_holds_weights_and_workspace_and_rest_keeps_weights() -> None:
    ledger = ledger_of(100, (holder("a", context=5), 0))
    lease = grant(ledger, "a", need(60, workspace=20, keep=40))
    assert (lease.weights, lease.extra_bytes, lease.keep) == (60, 20, 40)
    assert (ledger.granted, ledger.free, ledger.holders["a"].active) == (85, 15, True)
    ledger.release(lease.id, 40, "e1")
    assert (ledger.granted, ledger.free, ledger.holders["a"].active) == (45, 55, False)
    assert (ledger.peak_granted, ledger.counters.grants) == (85, 1)
    ledger.check()


def test_released_twice_counts_once() -> None:
    ledger = ledger_of(100, (holder("a"), 0))
    lease = grant(ledger, "a", need(60))
    ledger.release(lease.id, 60, "e1")
    ledger.release(lease.id, 0, "e1")
    assert ledger.granted == 60


def test_who_moves_least_for_its_work_goes_first_and_the_rest_when_it_fits() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("b", model="wan"), 0), (holder("c", model="z"), 0))
    running = grant(ledger, "a", need(50, workspace=10))
    small = ask(ledger, "b", need(10), admitted_at=2.0)
    large = ask(ledger, "c", need(90), admitted_at=1.0)
    (beside,) = ledger.advance(0.0)
    assert isinstance(beside, Granted)
    assert beside.ticket == small
    ledger.release(small, 0, "e1")
    ledger.release(running.id, 0, "e1")
    assert [event.ticket for event in ledger.advance(0.0) if isinstance(event, Granted)] == [large]


def test_equal_ages_are_served_as_they_came() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("b"), 0))
    tickets = [ask(ledger, "b", need(1)), ask(ledger, "a", need(1))]
    assert [event.ticket for event in ledger.advance(0.0) if isinstance(event, Granted)] == tickets


def test_waits_for_what_running_leases_give_back() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("b"), 0), (holder("idle"), 20))
    lease = grant(ledger, "a", need(60, workspace=10, keep=30))
    ask(ledger, "b", need(50))
    assert ledger.advance(0.0) == [], "40 come back, 10 are free"
    ledger.release(lease.id, 30, "e1")
    assert isinstance(ledger.advance(0.0)[0], Granted)


def test_who_waits_for_a_run_to_end_asks_nobody_until_then() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("b"), 0), (holder("idle"), 20))
    lease = grant(ledger, "a", need(60, workspace=10, keep=50))
    ask(ledger, "b", need(65))
    assert ledger.advance(0.0) == [], "the card may still do something else before that"
    ledger.release(lease.id, 50, "e1")
    assert shrinks(ledger, ledger.advance(0.0)) == [("idle", 20), ("a", 15)]


def test_the_dead_are_not_asked() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("b"), 40), (holder("idle"), 40))
    ledger.dead("b")
    ask(ledger, "a", need(60))
    assert shrinks(ledger, ledger.advance(0.0)) == [("idle", 40)]


def test_asks_only_for_what_is_needed_and_only_once() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("idle"), 80))
    ask(ledger, "a", need(50))
    assert shrinks(ledger, ledger.advance(0.0)) == [("idle", 30)]
    assert ledger.advance(1.0) == []
    ledger.resized("idle", 45, "e1")
    (event,) = ledger.advance(2.0)
    assert isinstance(event, Granted)
    assert (ledger.counters.shrinks, ledger.counters.evictions, ledger.free) == (1, 0, 5)


def test_bytes_are_free_only_once_reported() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("idle"), 80))
    ask(ledger, "a", need(50))
    ledger.advance(0.0)
    assert ledger.granted == 80
    ledger.resized("idle", 0, "e1")
    assert (ledger.granted, ledger.counters.evictions) == (0, 1)


def test_streams_only_what_does_not_fit_with_all_others_at_zero() -> None:
    ledger = ledger_of(100, (holder("a", context=5), 0), (holder("b", context=5), 50))
    ask(ledger, "a", need(100, workspace=10, floor=20, slot=7))
    assert shrinks(ledger, ledger.advance(0.0)) == [("b", 50)]
    ledger.resized("b", 0, "e1")
    (event,) = ledger.advance(0.0)
    assert isinstance(event, Granted)
    assert (event.lease.weights, event.lease.extra_bytes) == (73, 17)
    assert ledger.free == 0


def test_a_grant_below_what_is_held_waits_for_the_surplus_to_go() -> None:
    ledger = ledger_of(100, (holder("a"), 95))
    ask(ledger, "a", need(95, workspace=20, floor=10, slot=5))
    assert shrinks(ledger, ledger.advance(0.0)) == [("a", 20)]
    assert ledger.advance(1.0) == []
    ledger.resized("a", 70, "e1")
    (event,) = ledger.advance(2.0)
    assert isinstance(event, Granted)
    assert (event.lease.weights, ledger.free) == (75, 0)


def test_who_wants_less_than_it_holds_gives_the_difference_back_first() -> None:
    ledger = ledger_of(100, (holder("a"), 50))
    ask(ledger, "a", need(30))
    assert shrinks(ledger, ledger.advance(0.0)) == [("a", 20)]
    ledger.resized("a", 30, "e1")
    assert isinstance(ledger.advance(0.0)[0], Granted)


def test_who_is_giving_way_is_not_granted_before_it_has() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("b"), 80))
    ticket = ask(ledger, "a", need(50))
    ledger.advance(0.0)
    ledger.cancel(ticket, "e1")
    ask(ledger, "b", need(80))
    assert ledger.advance(1.0) == []
    ledger.resized("b", 50, "e1")
    assert isinstance(ledger.advance(1.0)[0], Granted)


def test_hopeless_is_refused_at_once_with_figures() -> None:
    ledger = ledger_of(100, (holder("a", context=5), 0))
    with pytest.raises(OutOfMemory, match=r"klein denoise \(pid 97\) needs at least 97 bytes.* 100 bytes.* leaves 95"):
        ask(ledger, "a", need(90, workspace=10, floor=80, slot=7))
    assert len(ledger.tickets) == 0


def test_a_smaller_budget_refuses_who_no_longer_fits() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("b"), 50))
    ask(ledger, "a", need(60))
    ledger.resize(40)
    ledger.check()
    assert isinstance(refusal(ledger.advance(0.0)), OutOfMemory)


def test_a_card_that_others_fill_from_the_start_is_no_contradiction() -> None:
    ledger = Ledger(-5, "e1")
    ledger.advance(0.0)
    ledger.check()


def test_nothing_is_granted_while_a_smaller_budget_is_exceeded() -> None:
    ledger = ledger_of(100, (holder("a"), 10), (holder("b"), 50))
    ledger.resize(40)
    ask(ledger, "a", need(10))
    assert shrinks(ledger, ledger.advance(0.0)) == [("b", 20)]
    ledger.resized("b", 30, "e1")
    assert isinstance(ledger.advance(0.0)[0], Granted)


def test_who_ignores_an_order_is_named() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("unresponsive"), 80))
    ask(ledger, "a", need(50))
    ledger.advance(1.0)
    assert ledger.next_deadline() == 11.0
    assert ledger.advance(10.9) == []
    message = str(refusal(ledger.advance(11.0)))
    assert f"pid {sum(map(ord, 'unresponsive'))}" in message
    assert "holds 80" in message
    assert ledger.next_deadline() is None
    ask(ledger, "a", need(50))
    assert "did not give way" in str(refusal(ledger.advance(12.0))), "no second wait for the same holder"
    ask(ledger, "a", need(20))
    assert isinstance(ledger.advance(12.0)[0], Granted)


def test_who_can_stream_does_beside_who_ignores_an_order() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("unresponsive"), 80))
    ask(ledger, "a", need(50, floor=10, slot=5))
    ledger.advance(0.0)
    (event,) = ledger.advance(10.0)
    assert isinstance(event, Granted)
    assert (event.lease.weights, event.lease.extra_bytes) == (15, 5)


def test_others_give_way_for_who_ignores_an_order() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("unresponsive", "encode"), 50), (holder("good", "decode"), 50))
    ask(ledger, "a", need(30))
    assert shrinks(ledger, ledger.advance(0.0)) == [("unresponsive", 30)]
    assert shrinks(ledger, ledger.advance(10.0)) == [("good", 30)]
    ledger.resized("good", 20, "e1")
    assert isinstance(ledger.advance(10.0)[0], Granted)


def test_a_late_answer_and_a_new_request_both_rehabilitate() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("slow"), 80))
    ask(ledger, "a", need(50))
    (order,) = ledger.advance(0.0)
    assert isinstance(order, Shrink)
    ledger.advance(10.0)
    grant(ledger, "slow", need(80))
    ledger.resized("slow", 50, "e1", order.id)
    ledger.resized("slow", 50, "e1")
    assert ledger.holders["slow"].weights == 80, "its order has lapsed, and it runs with what it was granted"


def test_who_never_answered_a_fetch_runs_all_the_same() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("b", "decode"), 0))
    grant(ledger, "a", need(40))
    ledger.expect("b", Wish(50, 0, 50))
    (order,) = ledger.advance(0.0)
    assert isinstance(order, Fetch)
    assert ledger.advance(20.0) == []
    ticket = ask(ledger, "b", need(60))
    (event,) = ledger.advance(20.0)
    assert isinstance(event, Granted)
    assert event.ticket == ticket
    ledger.resized("b", 50, "e1", order.id)
    assert ledger.holders["b"].weights == 60, "its order has lapsed"


def test_a_partial_answer_leaves_the_order_open() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("idle"), 80))
    ask(ledger, "a", need(50))
    ledger.advance(0.0)
    ledger.resized("idle", 70, "e1")
    assert (ledger.advance(1.0), ledger.counters.shrinks, ledger.granted) == ([], 0, 70)
    assert "holds 70" in str(refusal(ledger.advance(10.0)))


def test_none_waits_past_its_deadline() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("b"), 0))
    grant(ledger, "a", need(80))
    ledger.waits("a", Work(0, 0.0, 0.0), "e1")
    ask(ledger, "b", need(50), deadline=7.0)
    ledger.advance(0.0)
    assert ledger.advance(6.9) == [], "a has nothing left, so nobody is recalled"
    assert ledger.next_deadline() == 7.0
    assert isinstance(refusal(ledger.advance(7.0)), DeadlineExceeded)


def test_the_dead_keep_their_bytes_until_gone() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("b", context=10), 0))
    grant(ledger, "b", need(70, workspace=10))
    ticket = ask(ledger, "b", need(70))
    assert ledger.dead("b") == [ticket]
    assert (ledger.granted, len(ledger.tickets), ledger.holders["b"].dying) == (90, 0, True)
    ask(ledger, "a", need(50))
    assert ledger.advance(0.0) == [], "it would fit once the dead is gone, so it is not refused"
    ledger.check()
    assert ledger.gone("b") == []
    assert isinstance(ledger.advance(0.0)[0], Granted)
    assert ledger.gone("never joined") == ledger.dead("never joined") == []


def test_beside_the_dead_a_stage_that_can_streams() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("b"), 70))
    ledger.dead("b")
    lease = grant(ledger, "a", need(50, floor=10, slot=5))
    assert (lease.weights, lease.extra_bytes) == (25, 5)


def test_cancel_waiting_and_granted() -> None:
    ledger = ledger_of(100, (holder("a"), 20), (holder("b"), 0))
    lease = grant(ledger, "a", need(60, workspace=10))
    ticket = ask(ledger, "b", need(90))
    ledger.cancel(ticket, "e1")
    assert (len(ledger.tickets), ledger.granted) == (0, 70)
    ledger.cancel(lease.id, "e1")
    assert (ledger.granted, ledger.holders["a"].active) == (20, False)
    ledger.cancel(ticket, "e1")


def test_a_new_epoch_opens_late_and_learns_what_is_held() -> None:
    old = ledger_of(100, (holder("a"), 0), (holder("b"), 20))
    lease = grant(old, "a", need(60, workspace=10, keep=0))
    new = Ledger(100, "e2", opens_at=5.0)
    new.join(holder("b"), 20)
    new.join(holder("a"), 30, lease)
    new.join(holder("a"), 0)
    assert new.granted == 90, "all that the lease allows counts, placed or not"
    ticket = ask(new, "b", need(20, workspace=5), deadline=50.0)
    assert new.advance(4.0) == []
    assert new.next_deadline() == 5.0
    assert [event.ticket for event in new.advance(5.0) if isinstance(event, Granted)] == [ticket]
    new.release(lease.id, 0, "e2")
    assert new.granted == 25
    new.check()


@pytest.mark.parametrize(
    "call",
    [
        lambda ledger, epoch: ledger.request("a", need(1), Work(1, 0.0, 0.0), FAR, epoch),
        lambda ledger, epoch: ledger.release("e1:1", 0, epoch),
        lambda ledger, epoch: ledger.resized("a", 0, epoch),
        lambda ledger, epoch: ledger.cancel("e1:1", epoch),
    ],
)
def test_a_stale_epoch_is_refused(call: Callable[[Ledger, str], object]) -> None:
    ledger = ledger_of(100, (holder("a"), 20))
    with pytest.raises(StaleEpoch, match="join again"):
        call(ledger, "e0")
    call(ledger, "e1")


def test_strangers_and_the_dead_must_join() -> None:
    ledger = ledger_of(100, (holder("a"), 20))
    ledger.dead("a")
    for name in ("a", "b"):
        with pytest.raises(StaleEpoch):
            ask(ledger, name, need(1))


def test_holding_more_than_granted_is_counted_and_reported() -> None:
    ledger = ledger_of(100, (holder("a"), 0), (holder("b"), 30))
    lease = grant(ledger, "a", need(40))
    with pytest.raises(IntegrityError, match="holds 50"):
        ledger.release(lease.id, 50, "e1")
    with pytest.raises(IntegrityError, match="holds 60"):
        ledger.resized("b", 60, "e1")
    assert ledger.granted == 110
    with pytest.raises(IntegrityError, match="110 bytes"):
        ledger.check()
