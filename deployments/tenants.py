"""The stage processes of one card: what each could use, and what the plan of its model gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from lightx2v.core import Policy, StageName
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


class Tenants:
    """Members by the ids of their holders. Each model is planned for itself, and anew when somebody comes or goes."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._shares: dict[str, Shares | OutOfMemory] = {}

    @property
    def members(self) -> Mapping[str, Member]:
        return MappingProxyType(self._members)

    @property
    def caps(self) -> list[int]:
        return [member.budget for member in self._members.values() if member.budget is not None]

    def add(self, member: Member) -> None:
        """Also in the place of what was known of it."""
        self._members[member.holder.id] = member

    def remove(self, holder_id: str) -> None:
        del self._members[holder_id]

    def plan(self, budget: int) -> None:
        """Shares of `budget` bytes for every model."""
        contexts = sum(member.holder.context for member in self._members.values())
        for model in {member.holder.model for member in self._members.values()}:
            try:
                self._shares[model] = _shares([*self._of(model)], budget - contexts)
            except OutOfMemory as error:
                self._shares[model] = error

    def check(self, model: str) -> None:
        """Raises OutOfMemory if the budget is too small for this model however its weights are moved."""
        shares = self._shares.get(model)
        if isinstance(shares, OutOfMemory):
            raise shares

    def need(self, holder_id: str, workspace: int) -> Need:
        """What it asks for to run once. Raises OutOfMemory."""
        member = self._members[holder_id]
        shares, size = self._shares[member.holder.model], member.size
        if isinstance(shares, OutOfMemory):
            raise shares
        share = shares[member.holder.stage]
        floor = size.total if member.policy in ("whole", "model") else size.rest
        return Need(share.placed, floor, workspace, size.slot, share.resident)

    def wish(self, member: Member) -> Wish | None:
        """What it will be granted for its next run; nothing where the settings say when weights come and go."""
        shares = self._shares[member.holder.model]
        if isinstance(shares, OutOfMemory) or member.policy != "auto":
            return None
        share = shares[member.holder.stage]
        return Wish(share.placed, plans.running(member.size, share) - share.placed, share.resident)

    def planned(self, holder: Holder) -> int | None:
        """Bytes that it keeps at rest; None where there is no plan."""
        shares = self._shares.get(holder.model)
        return shares[holder.stage].resident if isinstance(shares, dict) else None

    def room(self, model: str, stage: StageName, budget: int) -> int:
        """How many replicas of a stage `budget` has room for, beside all others as they are."""
        shares, own = self._shares.get(model), [*self._of(model)]
        like = next((member for member in own if member.holder.stage == stage), None)
        if like is None or shares is None or isinstance(shares, OutOfMemory):
            return 1
        others = [member for member in self._members.values() if member not in own or member.holder.stage != stage]
        taken = sum(member.holder.context + (self.planned(member.holder) or 0) for member in others)
        return plans.room(like.size, shares[stage], budget - taken, like.holder.context)

    def _of(self, model: str) -> Iterator[Member]:
        return (member for member in self._members.values() if member.holder.model == model)


def _shares(members: list[Member], budget: int) -> Shares:
    """The plan of one model's stages; extra replicas of a stage are not planned for, they are leased like all else."""
    sizes = tuple({member.size.stage: member.size for member in members}.values())
    return _cached_shares(members[0].policy, sizes, budget)


@lru_cache(maxsize=16)
def _cached_shares(policy: Policy, sizes: tuple[StageSize, ...], budget: int) -> Shares:
    """A plan takes up to a second, and comes again when a successor joins in the place of the dead."""
    return plans.shares(policy, sizes, budget)
