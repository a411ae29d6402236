"""What one ticket would take of the card as it is now. All sizes are bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightx2v.residency.account import Account, Ticket
from lightx2v.residency.accounts import Accounts
from lightx2v.residency.lease import Need


@dataclass(frozen=True, slots=True)
class Claim:
    """The run of a ticket, and what it lacks."""

    ticket: Ticket
    account: Account
    weights: int
    """Those that the run would be granted."""
    lacking: int
    """More than is free. Negative if so much would stay free."""
    moved: int
    """Weights that it lacks, and weights at rest that it displaces: they are fetched again one day."""

    @property
    def fits(self) -> bool:
        """Whether it can be granted without a command to anybody."""
        return self.account.pending is None and self.account.weights <= self.weights and self.lacking <= 0


def claim(accounts: Accounts, ticket: Ticket) -> Claim | None:
    """The claim of a ticket; None if it is too large beside the contexts, the dead, and who ignores commands."""
    account = accounts[ticket.holder.id]
    unresponsive = [other for other in accounts.unresponsive if other is not account]
    weights = _beside(accounts, ticket.need, account)
    if weights is None:
        weights = ticket.need.fit(accounts.room(unresponsive), account.holder.reachable)
    if weights is None or account.is_stuck:
        return None
    fetched = max(0, weights - account.weights)
    lacking = fetched + ticket.need.grant(weights, account.holder.reachable).extra_bytes - accounts.free
    returns = sum(other.lease.returns for other in accounts.runs if other.lease)
    return Claim(ticket, account, weights, lacking, fetched + max(0, lacking - returns))


def _beside(accounts: Accounts, need: Need, account: Account) -> int | None:
    """The weights of a run that uses each once, if it fits into what is free: what stays of others is worth more, and
    nobody has to end for it. None for any other."""
    return need.fit(accounts.free + account.weights, account.holder.reachable) if need.is_single_use else None


def shortage(accounts: Accounts, claimed: Claim, ended: Sequence[Account], spared: bool) -> int:
    """Bytes that a claim still lacks when the runs of `ended` have ended and all idle holders have given way. `spared`:
    but for those of other models that still run, which keep what they will use next."""
    going = {run.holder.plan for run in accounts.runs if run not in ended} - {claimed.account.holder.plan}
    given = max(0, claimed.account.weights - claimed.weights)
    for other in accounts.values():
        if other.dying or other is claimed.account:
            continue
        if other.active:
            given += other.weights + other.extra_bytes if other in ended else 0
        elif other.pending:
            given += other.returning
        elif not (spared and other.holder.plan in going):
            given += other.weights
    return claimed.lacking - given
