"""The stage processes of one card: the memory that each could use, and the share that its model's plan gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from lightx2v.errors import OutOfMemory
from lightx2v.residency import plan as plans
from lightx2v.residency.card_plan import Model, plan_card
from lightx2v.residency.lease import Holder, Need, Room, Wish
from lightx2v.residency.mix import Mix
from lightx2v.residency.plan import StageSize
from lightx2v.residency.width import Cohort, Cohorts
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


PlanKey = tuple[str, str]
"""What `Holder.plan` says: the stages of one model with the same settings."""


class CardMembers:
    """The members of a card by holder id.

    The members of one model with the same settings are planned together, and all anew when a member comes or goes.
    """

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._plans: dict[PlanKey, Cohorts | OutOfMemory] = {}
        self._mix = Mix[PlanKey]()
        self._room = 0

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

    def note(self, holder_id: str, now: float) -> None:
        """Counts a run that begins, for the mix of models. `now`: monotonic seconds."""
        member = self._members[holder_id]
        if member.policy == "auto":
            self._mix.note(member.holder.plan, member.holder.stage, now)

    def is_stale(self, now: float) -> bool:
        """Whether the mix of models has changed so much since the last plan that another may be better."""
        return self._mix.is_stale(now)

    def plan(self, budget: int) -> None:
        """Plans all models within `budget` bytes, which include the contexts.

        What the models under `auto` keep follows from their mix in the last minute.
        """
        models = {key: _model([*self._of(key)]) for key in {member.holder.plan for member in self._members.values()}}
        traffic = self._mix.plan([key for key, model in models.items() if model.policy == "auto"])
        self._room = budget - sum(member.holder.context for member in self._members.values())
        self._plans = plan_card(models, traffic, self._room)

    def check(self, holder_id: str) -> None:
        """Raises OutOfMemory if the budget is too small for the member's model under its policy."""
        self._cohort(self._members[holder_id].holder)

    def need(self, holder_id: str, room: Room, jobs: int) -> Need:
        """The memory that a holder needs for one run that begins while `jobs` requests wait for it.

        `room`: of the first one. If it is larger than planned, fewer run together. Raises OutOfMemory if its model has
        no plan.
        """
        member = self._members[holder_id]
        share, size = self._cohort(member.holder).share(jobs), member.size
        floor = size.reachable if member.policy in ("whole", "model") else size.rest
        need = Need(share.placed, floor, room.activation_bytes, size.slot_bytes, share.resident)
        spare = max(0, self._room - need.least(size.reachable))
        more = min(share.width - 1, spare // room.member_bytes if room.member_bytes else share.width)
        return replace(
            need,
            activation_bytes=room.activation_bytes + more * room.member_bytes,
            width=1 + more,
            is_single_use=size.planned_passes == 1,
        )

    def wish(self, member: Member) -> Wish | None:
        """The memory that the member will be granted for its next run.

        None if the policy is not `auto`, so that it moves the weights itself, or if the model has no plan.
        """
        made = self._plans[member.holder.plan]
        if isinstance(made, OutOfMemory) or member.policy != "auto":
            return None
        share = replace(made[member.holder.stage].narrow, width=1)
        return Wish(share.placed, plans.grant(member.size, share).extra_bytes, share.resident)

    def planned(self, holder: Holder) -> int | None:
        """Bytes of weights that the holder keeps at rest; None if its model has no plan."""
        made = self._plans.get(holder.plan)
        return made[holder.stage].narrow.resident if isinstance(made, dict) else None

    def width(self, holder: Holder) -> int | None:
        """The requests of the planned size that may run together; None if its model has no plan."""
        made = self._plans.get(holder.plan)
        return made[holder.stage].wide.width if isinstance(made, dict) else None

    def max_replicas(self, holder_id: str, budget: int) -> int:
        """The number of replicas of this stage that fit into `budget` beside the other stages; at least 1."""
        like = self._members[holder_id]
        holder, made = like.holder, self._plans[like.holder.plan]
        if isinstance(made, OutOfMemory):
            return 1
        others = [one.holder for one in self._members.values()]
        others = [other for other in others if (other.plan, other.stage) != (holder.plan, holder.stage)]
        taken = sum(other.context + (self.planned(other) or 0) for other in others)
        return plans.max_replicas(like.size, made[holder.stage].narrow, budget - taken, holder.context)

    def _of(self, key: PlanKey) -> Iterator[Member]:
        return (member for member in self._members.values() if member.holder.plan == key)

    def _cohort(self, holder: Holder) -> Cohort:
        made = self._plans[holder.plan]
        if isinstance(made, OutOfMemory):
            raise made
        return made[holder.stage]


def _model(members: list[Member]) -> Model:
    """One model's stages with one replica each. Further replicas are not planned for, only leased."""
    return Model(members[0].policy, tuple({member.size.stage: member.size for member in members}.values()))
