"""Who gives way when a run lacks memory: who needs it last, and what the plan does not keep before what it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lightx2v.residency.account import Account
from lightx2v.residency.lease import Holder


class _Piece(NamedTuple):
    """Weights of one holder that are worth the same."""

    worth: tuple[bool, bool, int, int]
    holder: str
    nbytes: int


def evictions(accounts: Iterable[Account], waiter: Account, lacking: int) -> dict[str, int]:
    """Bytes to drop by ids of idle holders, so that `lacking` bytes return, or all that there are."""
    others = (account for account in accounts if account.idle and account is not waiter)
    given: Counter[str] = Counter()
    if lacking <= 0:
        return given
    for piece in sorted(piece for account in others for piece in _pieces(account, waiter.holder)):
        if lacking <= 0:
            break
        nbytes = min(lacking, piece.nbytes)
        given[piece.holder] += nbytes
        lacking -= nbytes
    return given


def _pieces(account: Account, waiter: Holder) -> Iterator[_Piece]:
    """Other models go first, by recency. Of its own, the waiter takes what was only fetched ahead, then what the plan
    keeps, each by farthest next use."""
    own = account.holder.plan == waiter.plan
    distance = account.holder.after(waiter) if own else 0
    kept = min(account.weights, account.wish.keep) if account.wish else account.weights
    for planned, nbytes in ((False, account.weights - kept), (True, kept)):
        if nbytes:
            yield _Piece((own, own and planned, -distance, account.used), account.holder.id, nbytes)
