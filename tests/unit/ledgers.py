"""Ledgers, holders and needs in a line each."""

from __future__ import annotations

from lightx2v.residency.lease import Event, Granted, Holder, Lease, Need, Shrink, Work
from lightx2v.residency.ledger import Ledger
from lightx2v.types import StageName

FAR = 1e9


def holder(
    name: str, stage: StageName = "denoise", model: str = "klein", context: int = 0, reachable: int = 100
) -> Holder:
    return Holder(name, model, stage, pid=sum(map(ord, name)), context=context, reachable=reachable)


def need(weights: int, workspace: int = 0, floor: int | None = None, slot: int = 0, keep: int | None = None) -> Need:
    floor, keep = weights if floor is None else floor, weights if keep is None else keep
    return Need(weights, floor, workspace, slot, keep)


def ledger_of(budget: int, *resting: tuple[Holder, int]) -> Ledger:
    """With holders that rest with so many bytes."""
    ledger = Ledger(budget, "e1")
    for who, weights in resting:
        ledger.join(who, weights)
    return ledger


def ask(
    ledger: Ledger,
    name: str,
    wants: Need,
    admitted_at: float = 0.0,
    deadline: float = FAR,
    *,
    jobs: int = 1,
    seconds: float = 0.0,
    priority: int = 0,
) -> str:
    return ledger.request(name, wants, Work(jobs, seconds, admitted_at, priority), deadline, ledger.epoch)


def grant(ledger: Ledger, name: str, wants: Need) -> Lease:
    """Ask and be granted at once."""
    ask(ledger, name, wants)
    (event,) = ledger.advance(0.0)
    assert isinstance(event, Granted)
    return event.lease


def shrinks(ledger: Ledger, events: list[Event]) -> list[tuple[str, int]]:
    """Who is to give way, and the bytes that each is to drop."""
    orders = [event for event in events if isinstance(event, Shrink)]
    assert len(orders) == len(events)
    return [(order.holder, ledger.holders[order.holder].weights - order.weights) for order in orders]
