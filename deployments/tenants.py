"""The stage processes of one card: what each could use, and what the plan of its model gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from lightx2v.core import Policy
from lightx2v.errors import OutOfMemory
from lightx2v.residency import plan as plans
from lightx2v.residency.lease import Holder, Need, Wish
from lightx2v.residency.plan import Shares, StageSize


@dataclass(frozen=True, slots=True)
class Member:
    """A stage process as it introduces itself: who it is, what it could use, how its weights are to live."""

    holder: Holder
    size: StageSize
    policy: Policy
    budget: int | None
    """The cap that its application sets for the card; the lowest of all holds."""


class CardMembers:
    """Members by the ids of their holders.

    The members of one model under one set of settings are planned together, and anew when somebody comes or goes.
    """

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._shares: dict[tuple[str, str], Shares | OutOfMemory] = {}

    @property
    def members(self) -> Mapping[str, Member]:
        """All of them, by the ids of their holders."""
        return MappingProxyType(self._members)

    @property
    def pids(self) -> set[int]:
        """Processes of all members."""
        return {member.holder.pid for member in self._members.values()}

    @property
    def caps(self) -> list[int]:
        """Bytes of the card that applications allow, where they set a limit."""
        return [member.budget for member in self._members.values() if member.budget is not None]

    def add(self, member: Member) -> None:
        """Registers a member, or replaces what was known of it."""
        self._members[member.holder.id] = member

    def remove(self, holder_id: str) -> None:
        """The process is gone. Raises KeyError."""
        del self._members[holder_id]

    def plan(self, budget: int) -> None:
        """Plans the shares of every model, each as if it had all of `budget` bytes but the contexts."""
        contexts = sum(member.holder.context for member in self._members.values())
        self._shares.clear()
        for key in {member.holder.plan for member in self._members.values()}:
            try:
                self._shares[key] = _shares([*self._of(key)], budget - contexts)
            except OutOfMemory as error:
                self._shares[key] = error

    def check(self, holder_id: str) -> None:
        """Raises OutOfMemory if the budget is too small for its model however the weights are moved."""
        shares = self._shares[self._members[holder_id].holder.plan]
        if isinstance(shares, OutOfMemory):
            raise shares

    def need(self, holder_id: str, activation_bytes: int) -> Need:
        """The memory that the holder asks for to run once. Raises OutOfMemory if its model has no plan."""
        member = self._members[holder_id]
        shares, size = self._shares[member.holder.plan], member.size
        if isinstance(shares, OutOfMemory):
            raise shares
        share = shares[member.holder.stage]
        floor = size.reachable if member.policy in ("whole", "model") else size.rest
        return Need(share.placed, floor, activation_bytes, size.slot_bytes, share.resident)

    def wish(self, member: Member) -> Wish | None:
        """The memory that the member will be granted for its next run.

        None where a policy other than `auto` says when weights come and go, or the model has no plan.
        """
        shares = self._shares[member.holder.plan]
        if isinstance(shares, OutOfMemory) or member.policy != "auto":
            return None
        share = shares[member.holder.stage]
        return Wish(share.placed, plans.grant(member.size, share).extra_bytes, share.resident)

    def planned(self, holder: Holder) -> int | None:
        """Bytes of weights that the holder keeps at rest; None where its model has no plan."""
        shares = self._shares.get(holder.plan)
        return shares[holder.stage].resident if isinstance(shares, dict) else None

    def max_replicas(self, holder_id: str, budget: int) -> int:
        """How many replicas of this stage `budget` has room for, beside all others as they are; at least 1."""
        like = self._members[holder_id]
        holder, shares = like.holder, self._shares[like.holder.plan]
        if isinstance(shares, OutOfMemory):
            return 1
        others = [one.holder for one in self._members.values()]
        others = [other for other in others if (other.plan, other.stage) != (holder.plan, holder.stage)]
        taken = sum(other.context + (self.planned(other) or 0) for other in others)
        return plans.max_replicas(like.size, shares[holder.stage], budget - taken, holder.context)

    def _of(self, plan: tuple[str, str]) -> Iterator[Member]:
        return (member for member in self._members.values() if member.holder.plan == plan)


def _shares(members: list[Member], budget: int) -> Shares:
    """The plan of one model's stages, with one replica each. More replicas are not planned for, only leased."""
    sizes = tuple({member.size.stage: member.size for member in members}.values())
    return _cached_shares(members[0].policy, sizes, budget)


@lru_cache(maxsize=16)
def _cached_shares(policy: Policy, sizes: tuple[StageSize, ...], budget: int) -> Shares:
    """Cached: a plan takes up to a second, and is wanted again when a successor joins in the place of the dead."""
    return plans.shares(policy, sizes, budget)
