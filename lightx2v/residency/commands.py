"""Gives commands to holders, and numbers them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lightx2v.residency.account import Account, Pending
from lightx2v.residency.counters import Counters
from lightx2v.residency.lease import Fetch, Recall, Shrink


class Commands:
    """Opens commands in the accounts of their holders. An idle holder that has not answered one within `patience`
    seconds is overdue. `next_id`: ids of commands."""

    def __init__(self, patience: float, counters: Counters, next_id: Callable[[], str]) -> None:
        self.patience = patience
        self._counters, self._next_id = counters, next_id

    def shrink(self, account: Account, nbytes: int, now: float) -> Shrink:
        """Asks an idle holder for `nbytes` of weights."""
        account.offered = 0
        command = Shrink(account.holder.id, account.weights - nbytes, self._next_id())
        account.pending = Pending(command, now + self.patience)
        return command

    def fetch(self, account: Account, weights: int, now: float) -> Fetch:
        """Lets an idle holder come up to `weights`. They count as held from now on."""
        self._counters.fetches += 1
        account.weights = account.offered = weights
        command = Fetch(account.holder.id, weights, self._next_id())
        account.pending = Pending(command, now + self.patience)
        return command

    def recall(self, account: Account) -> Recall:
        """Asks a holder to end its run."""
        assert account.run is not None
        assert account.lease is not None
        self._counters.recalls += 1
        account.run.recall = Recall(account.holder.id, account.lease.id)
        return account.run.recall

    def answered(self, account: Account, weights: int, command_id: str | None) -> bool:
        """Takes a report of an idle holder's weights. False if it is to be ignored: the command has lapsed or was
        answered before, or nobody asked, and the report may precede what the holder is about to fetch."""
        pending = account.pending
        if account.active or not (pending.is_answered_by(command_id) if pending else command_id is None):
            return False
        if pending is not None:
            pending.answered = command_id is not None
        if pending is not None and weights <= pending.command.weights:
            account.pending = None
            self._counters.shrinks += not pending.grows
            self._counters.evictions += weights == 0 and not pending.grows
        return True


def note_overdue(accounts: Iterable[Account], now: float) -> None:
    """Marks the commands whose time is up."""
    for account in accounts:
        if account.pending is not None and account.pending.due <= now:
            account.pending.overdue = True
