"""All accounts of a card, and the bytes that they leave."""

from __future__ import annotations

from collections.abc import Sequence

from lightx2v.errors import OutOfMemory
from lightx2v.residency.account import Account, IntegrityError, Run
from lightx2v.residency.lease import Holder, Need
from lightx2v.types import STAGES


class Accounts(dict[str, Account]):
    """The accounts by the ids of their holders, and the budget that they share. All sizes are bytes."""

    def __init__(self, budget: int) -> None:
        super().__init__()
        self.budget = budget

    @property
    def granted(self) -> int:
        """Bytes that somebody has: processes, weights, and what runs take besides."""
        return sum(account.nbytes for account in self.values())

    @property
    def free(self) -> int:
        """Bytes that nobody has. Negative while a join or a smaller budget has revealed too much."""
        return self.budget - self.granted

    @property
    def unresponsive(self) -> list[Account]:
        """Those whose answer to a command is overdue."""
        return [account for account in self.values() if account.is_unresponsive]

    @property
    def runs(self) -> list[Account]:
        """Those that run and can hear a recall."""
        return [account for account in self.values() if account.active and not account.dying]

    def comes_back(self, holder: Holder, run: Run) -> bool:
        """Whether more work of the holder's model is about to come when its run ends: for its later stages, or from
        callers who had their answers together and come back together."""
        later = (STAGES.index(account.holder.stage) > STAGES.index(holder.stage) for account in self._of(holder))
        return run.crowd > 1 or any(later)

    def room(self, unresponsive: Sequence[Account] = ()) -> int:
        """Bytes that one holder can have if all others drop their weights, except the dead and the `unresponsive`."""
        held = sum(account.nbytes if account.dying else account.holder.context for account in self.values())
        return self.budget - held - sum(account.weights for account in unresponsive)

    def _of(self, holder: Holder) -> list[Account]:
        return [account for account in self.values() if account.holder.plan == holder.plan]

    def leased(self, lease_id: str) -> Account | None:
        """The living holder that runs with this lease; None if it has been returned."""
        living = (account for account in self.values() if not account.dying)
        return next((account for account in living if account.lease and account.lease.id == lease_id), None)

    def require(self, account: Account, need: Need) -> None:
        """Raises OutOfMemory for what would not fit even with everyone else evicted and the dead gone."""
        contexts = sum(other.holder.context for other in self.values() if not other.dying)
        if need.fit(self.budget - contexts, account.holder.reachable) is None:
            raise OutOfMemory(
                f"{account.holder} needs at least {need.least(account.holder.reachable)} bytes; "
                f"the budget of {self.budget} bytes, less {contexts} for the processes, leaves {self.budget - contexts}"
            )

    def require_responses(self, account: Account, need: Need, patience: float) -> None:
        """Raises OutOfMemory for what would fit only if holders gave way that did not within `patience` seconds."""
        others = [other for other in self.unresponsive if other is not account]
        if account.is_stuck or (others and need.fit(self.room(), account.holder.reachable) is not None):
            other = account if account.is_stuck else max(others, key=lambda other: other.weights)
            raise OutOfMemory(
                f"{account.holder} needs at least {need.least(account.holder.reachable)} bytes, "
                f"but {other.holder} holds {other.weights} and did not give way within {patience} s"
            )

    def check(self, allowed: int) -> None:
        """Raises IntegrityError if more than `allowed` bytes are granted, or an account contradicts itself."""
        if self.granted > allowed:
            raise IntegrityError(f"{self.granted} bytes are granted of {allowed}")
        for account in self.values():
            if not 0 <= account.weights <= account.holder.reachable:
                raise IntegrityError(f"{account.holder} holds {account.weights} of {account.holder.reachable} bytes")
            if account.lease is not None and account.weights < account.lease.weights:
                raise IntegrityError(f"{account.holder} runs with more than the {account.weights} bytes counted")
