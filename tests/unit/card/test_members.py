"""The plan of a card's members, and what a run of one or many requests may take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deployments.card.members import CardMembers, Member
from lightx2v.errors import OutOfMemory
from lightx2v.residency.lease import Holder, Need, Room
from lightx2v.residency.mix import PLAN_SECONDS
from lightx2v.residency.plan import StageSize
from lightx2v.types import Policy

SIZE = StageSize("denoise", (10,) * 10, 0, 5, 10, 4, overlap_bytes=35, member_bytes=4)
"""Of ten units that each compute for the time of 3.5 bytes."""


def one(model: str, size: StageSize = SIZE, *, policy: Policy = "auto", context: int = 0) -> Member:
    return Member(Holder(model, model, size.stage, 1, context, size.reachable), size, policy, None)


def planned(budget: int, *members: Member) -> CardMembers:
    made = CardMembers()
    for member in members:
        made.add(member)
    made.plan(budget)
    return made


def test_many_run_together_and_one_runs_as_if_there_were_no_others() -> None:
    """In 57 bytes, 40 stay and 60 stream behind 35. Two more take 8, which costs a unit, and hide all."""
    made = planned(57 + 3, one("klein", context=3))
    assert made.need("klein", Room(5, 4), jobs=1) == Need(40, 0, 5, 10, 40)
    assert made.need("klein", Room(5, 4), jobs=2) == Need(30, 0, 5 + 2 * 4, 10, 30, width=3)
    assert made.need("klein", Room(5, 4), jobs=9) == Need(30, 0, 5 + 2 * 4, 10, 30, width=3)
    assert made.width(made.members["klein"].holder) == 3


def test_larger_requests_run_in_smaller_cohorts() -> None:
    """The least that a run takes is the ring of 10 and its activations."""
    made = planned(57, one("klein"))
    assert made.need("klein", Room(5, 42), jobs=2).width == 2
    alone = made.need("klein", Room(5, 43), jobs=2)
    assert (alone.width, alone.activation_bytes) == (1, 5)
    too_large = made.need("klein", Room(60, 4), jobs=2)
    assert (too_large.width, too_large.activation_bytes) == (1, 60)


def test_members_that_take_no_memory_are_as_many_as_planned() -> None:
    made = planned(57, one("klein", replace(SIZE, member_bytes=0)))
    assert made.need("klein", Room(5, 0), jobs=1).width == made.need("klein", Room(5, 0), jobs=5).width == 3


def test_models_share_a_card_by_their_mix() -> None:
    """In turns, both keep a part. Once one runs alone, it has the card, and the other is brought when it is asked
    for."""
    once = replace(SIZE, planned_passes=1, overlap_bytes=0)
    made = planned(115, one("a", once), one("b", once))
    holders = [member.holder for member in made.members.values()]

    def kept() -> list[int | None]:
        return [made.planned(holder) for holder in holders]

    for at in range(20):
        made.note("ab"[at % 2], float(at))
    made.plan(115)
    assert sum(nbytes or 0 for nbytes in kept()) == 100
    assert not made.is_stale(19.0 + PLAN_SECONDS)
    for at in range(20, 60):
        made.note("a", float(at))
    assert made.is_stale(60.0)
    made.plan(115)
    assert kept()[0] == 100
    assert not made.is_stale(60.0)


def test_a_model_that_keeps_all_by_its_policy_leaves_the_rest() -> None:
    made = planned(200, one("a"), one("b", policy="whole"))
    made.note("b", 0.0)
    assert [made.planned(member.holder) for member in made.members.values()] == [80, 100]


def test_a_model_without_a_plan_is_refused_by_name() -> None:
    made = planned(115, one("a"), one("b", replace(SIZE, activation_bytes=200)))
    made.check("a")
    assert made.width(made.members["b"].holder) is None
    for call in (made.check, lambda holder: made.need(holder, Room(5, 0), 1)):
        with pytest.raises(OutOfMemory, match="denoise needs 210 bytes"):
            call("b")
