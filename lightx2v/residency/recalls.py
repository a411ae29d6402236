"""Which runs must end early: for a claim, or for more of their own kind."""

from __future__ import annotations

from lightx2v.residency.account import Account
from lightx2v.residency.accounts import Accounts
from lightx2v.residency.claim import Claim, shortage
from lightx2v.residency.gate import Gate


def outgrown(accounts: Accounts) -> list[Account]:
    """The runs to recall because more jobs wait than their leases are for. They ask anew, for all of them."""
    return [account for account in accounts.runs if account.run and account.run.is_outgrown and not account.run.recall]


def recalls(accounts: Accounts, claimed: Claim, gate: Gate, spared: bool) -> tuple[float, list[Account]]:
    """The runs to recall so that a claim fits, and the monotonic seconds from which the gate wants all of them to end.
    Runs that were recalled before count as ended. `spared`: see `shortage`."""
    ended = [run for run in accounts.runs if run.run and run.run.recall]
    times = {}
    for account in accounts.runs:
        if account.run and account.lease and not account.run.recall:
            moved = claimed.moved + account.lease.weights - account.lease.keep
            times[account.holder.id] = gate.recall_at(claimed.ticket, account.run, moved)
    chosen: list[Account] = []
    for holder_id in sorted(times, key=lambda holder_id: times[holder_id]):
        if shortage(accounts, claimed, [*ended, *chosen], spared) > 0:
            chosen.append(accounts[holder_id])
    return max((times[account.holder.id] for account in chosen), default=0.0), chosen
