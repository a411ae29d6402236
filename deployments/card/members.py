"""The stage processes of one card: the memory that each could use, and the share that its model's plan gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from lightx2v.errors import OutOfMemory
from lightx2v.residency import plan as plans
from lightx2v.residency.lease import Holder, Need, Room, Wish
from lightx2v.residency.plan import Shares, StageSize
from lightx2v.types import Policy


@dataclass(frozen=True, slots=True)
class Member:
    """A stage process's description of itself: its identity, the sizes of its stage, its policy for weights."""

    holder: Holder
    size: StageSize
    policy: Policy
    budget: int | None
    """The cap on the card's bytes that its application sets; the lowest cap of all members applies."""


def starting(holder: Holder, budget: int | None) -> Member:
    """The member for a process that has not loaded its stage: it has no weights, and is planned apart."""
    size = StageSize(holder.stage, (), 0, 0, 0, 1)
    return Member(replace(holder, settings="starting", reachable=0), size, "whole", budget)


class CardMembers:
    """The members of a card by holder id.

    The members of one model with the same settings are planned together, and anew when a member comes or goes.
    """

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._shares: dict[tuple[str, str], Shares | OutOfMemory] = {}

    @property
    def members(self) -> Mapping[str, Member]:
        """All members by holder id."""
        return MappingProxyType(self._members)

    @property
    def pids(self) -> set[int]:
        """The process ids of all members."""
        return {member.holder.pid for member in self._members.values()}

    @property
    def caps(self) -> list[int]:
        """The caps on the card's bytes, of the members that have one."""
        return [member.budget for member in self._members.values() if member.budget is not None]

    def add(self, member: Member) -> None:
        """Registers a member, or replaces its description."""
        self._members[member.holder.id] = member

    def remove(self, holder_id: str) -> None:
        """Removes a member whose process is gone. Raises KeyError."""
        del self._members[holder_id]

    def plan(self, budget: int) -> None:
        """Plans the shares of every model, each as if it had all of the `budget` bytes besides the contexts."""
        contexts = sum(member.holder.context for member in self._members.values())
        self._shares.clear()
        for key in {member.holder.plan for member in self._members.values()}:
            try:
                self._shares[key] = _shares([*self._of(key)], budget - contexts)
            except OutOfMemory as error:
                self._shares[key] = error

    def check(self, holder_id: str) -> None:
        """Raises OutOfMemory if the budget is too small for the member's model under its policy."""
        shares = self._shares[self._members[holder_id].holder.plan]
        if isinstance(shares, OutOfMemory):
            raise shares

    def need(self, holder_id: str, room: Room) -> Need:
        """The memory that a holder needs for one run, of as many members as its plan allows. `room`: of one. Raises
        OutOfMemory if its model has no plan."""
        member = self._members[holder_id]
        shares, size = self._shares[member.holder.plan], member.size
        if isinstance(shares, OutOfMemory):
            raise shares
        share = shares[member.holder.stage]
        floor = size.reachable if member.policy in ("whole", "model") else size.rest
        width = self.width(member.holder)
        activation_bytes = room.activation_bytes + (width - 1) * room.member_bytes
        return Need(share.placed, floor, activation_bytes, size.slot_bytes, share.resident, width)

    def wish(self, member: Member) -> Wish | None:
        """The memory that the member will be granted for its next run.

        None if the policy is not `auto`, so that it moves the weights itself, or if the model has no plan.
        """
        shares = self._shares[member.holder.plan]
        if isinstance(shares, OutOfMemory) or member.policy != "auto":
            return None
        share = shares[member.holder.stage]
        return Wish(share.placed, plans.grant(member.size, share).extra_bytes, share.resident)

    def planned(self, holder: Holder) -> int | None:
        """Bytes of weights that the holder keeps at rest; None if its model has no plan."""
        shares = self._shares.get(holder.plan)
        return shares[holder.stage].resident if isinstance(shares, dict) else None

    def width(self, holder: Holder) -> int:
        """Members of one size that a cohort of the holder may have."""
        return self._members[holder.id].size.max_width

    def max_replicas(self, holder_id: str, budget: int) -> int:
        """The number of replicas of this stage that fit into `budget` beside the other stages; at least 1."""
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
    """The plan of one model's stages with one replica each. Further replicas are not planned for, only leased."""
    sizes = tuple({member.size.stage: member.size for member in members}.values())
    return _cached_shares(members[0].policy, sizes, budget)


@lru_cache(maxsize=16)
def _cached_shares(policy: Policy, sizes: tuple[StageSize, ...], budget: int) -> Shares:
    """The plan, cached: it takes up to a second, and is needed again when a dead process's successor joins."""
    return plans.shares(policy, sizes, budget)
