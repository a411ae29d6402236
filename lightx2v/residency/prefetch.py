"""Fetching ahead: the weights of the stages that run next come early, into memory that is free until then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lightx2v.core import STAGES
from lightx2v.residency.account import Account
from lightx2v.residency.lease import Holder, Wish


def offers(accounts: Iterable[Account], last: Holder, free: int) -> Iterator[tuple[Account, int]]:
    """Yields idle holders of the model that ran `last`, and the bytes up to which each may fetch. Whoever runs next
    comes first.

    Two amounts are never offered: what the stages that run next take besides their weights, and what others still lack
    of their planned share. An offer that a holder could not use is not repeated.
    """
    following = sorted(_wishing(accounts, last.plan), key=lambda one: one[0].holder.after(last) or len(STAGES))
    owed = sum(_lacks(account, wish) for account, wish in following)
    reserve = returning = 0
    for account, wish in following:
        owed -= _lacks(account, wish)
        reserve = max(reserve, wish.extra_bytes - returning)
        held, most = account.weights, account.weights + free - reserve
        to = min(wish.weights, max(min(wish.keep, most), most - owed))
        if account.could_use(to):
            free, held = free - (to - held), to
            yield account, to
        returning += max(0, held - wish.keep)


def _wishing(accounts: Iterable[Account], plan: tuple[str, str]) -> Iterator[tuple[Account, Wish]]:
    for account in accounts:
        if account.wish and account.holder.plan == plan and not (account.active or account.dying):
            yield account, account.wish


def _lacks(account: Account, wish: Wish) -> int:
    """Bytes that the plan keeps for this holder, that it lacks and could be offered."""
    return wish.keep - account.weights if account.could_use(wish.keep) else 0
