"""Whose weights may come before they are asked for: those of who runs next, into memory that is free until then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lightx2v.core import STAGES
from lightx2v.residency.account import Account
from lightx2v.residency.lease import Holder


def offers(accounts: Iterable[Account], last: Holder, free: int) -> Iterator[tuple[Account, int]]:
    """Idle holders of the model that ran `last`, who runs next first, and up to how many bytes each may come.

    What a stage takes besides its weights stays free for it and for those who run before it. Nobody is offered again
    what he could not use.
    """
    reserve = 0
    for account in sorted(accounts, key=lambda account: _distance(last, account.holder)):
        wish = account.wish
        if wish is None or account.holder.model != last.model or account.active or account.dying:
            continue
        reserve = max(reserve, wish.beside)
        to = min(wish.weights, account.weights + free - reserve)
        if account.order is None and to > max(account.weights, account.offered):
            free -= to - account.weights
            yield account, to


def _distance(last: Holder, holder: Holder) -> int:
    """0 for the stage that comes after `last`."""
    return (STAGES.index(holder.stage) - STAGES.index(last.stage) - 1) % len(STAGES)
