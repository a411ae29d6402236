"""Who gives way when a run lacks memory: who needs it last, and what the plan does not keep before what it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lightx2v.core import STAGES
from lightx2v.residency.account import Account
from lightx2v.residency.lease import Holder


class _Piece(NamedTuple):
    """Weights of one holder that are worth the same."""

    worth: tuple[bool, bool, int, int]
    holder: str
    nbytes: int


def evictions(accounts: Iterable[Account], waiter: Account, lacking: int) -> dict[str, int]:
    """Bytes to drop by ids of idle holders, so that `lacking` bytes return, or all that there are."""
    idle = (account for account in accounts if _idle(account) and account is not waiter)
    given: Counter[str] = Counter()
    for piece in sorted(piece for account in idle for piece in _pieces(account, waiter.holder)):
        nbytes = min(lacking, piece.nbytes)
        given[piece.holder] += nbytes
        lacking -= nbytes
    return {holder: nbytes for holder, nbytes in given.items() if nbytes > 0}


def _idle(account: Account) -> bool:
    return not (account.active or account.dying or account.order)


def _pieces(account: Account, waiter: Holder) -> Iterator[_Piece]:
    """Other models go first, by recency. Of its own, the waiter takes what was only fetched ahead, then what the plan
    keeps, each by farthest next use."""
    own = account.holder.model == waiter.model
    distance = (STAGES.index(account.holder.stage) - STAGES.index(waiter.stage)) % len(STAGES)
    kept = min(account.weights, account.wish.keep) if account.wish else account.weights
    for planned, nbytes in ((False, account.weights - kept), (True, kept)):
        yield _Piece((own, planned and own, -distance if own else 0, account.used), account.holder.id, nbytes)
