"""Runs members through cohorts of one stage, and checks what becomes of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, cycle
from typing import Any

from lightx2v.errors import Cancelled
from lightx2v.models.visits import Move
from lightx2v.residency.lease import Grant
from lightx2v.stages.cohort import Cohort, Member
from lightx2v.stages.stage import Stage
from tests.parity.cohorts import Fate, Fault, Kind, Model, leaves


@dataclass(slots=True)
class Run:
    """Runs members of one kind through cohorts of one stage. Counts the passes over its blocks, and the bytes that
    these must move."""

    model: Model
    kind: Kind
    fates: Sequence[Fate]
    passes: int = field(default=0, init=False)
    expected: int = field(default=0, init=False)

    @property
    def stage(self) -> Stage[Any]:
        return self.model.stages[self.kind.stage]

    def through(self, grants: Sequence[Grant], recalls: frozenset[int]) -> None:
        """`recalls`: the passes after which the members give way, to go on under the next of `grants`."""
        waiting = deque(sorted(self.fates, key=lambda fate: fate.arrives))
        going: list[Member] = []
        for grant in cycle(grants):
            with self.stage.granted(grant, self.kind.method) as cohort:
                going = self._within(cohort, going, waiting, recalls)
            assert self.stage.resident <= grant.keep
            if not going and not waiting:
                return

    def _within(
        self, cohort: Cohort, going: Sequence[Member], waiting: deque[Fate], recalls: frozenset[int]
    ) -> list[Member]:
        """Runs rounds until nobody is left or the members are recalled; returns those that are left."""
        for member in going:
            cohort.join(member)
        cohort.move(Move.BACK)
        first, streaming = self.passes, self._streaming()
        while self._join(cohort, waiting) and not (self.passes in recalls and self.passes > first):
            self.passes += any(member.rounds for member in cohort.members)
            cohort.run_round(others_wait=bool(waiting))
        self.expected += (self.passes - first) * streaming
        cohort.move(Move.AWAY)
        return cohort.members

    def _join(self, cohort: Cohort, waiting: deque[Fate]) -> bool:
        """Lets those join who have come; whether there are members."""
        while waiting and (waiting[0].arrives <= self.passes or not cohort.members):
            member = self._member(waiting[0])
            if cohort.members and not cohort.fits(member.room):  # one alone has a grant of its own
                break
            cohort.join(member)
            waiting.popleft()
        return bool(cohort.members)

    def _member(self, fate: Fate) -> Member:
        job = self.model.jobs[self.kind][fate.job]
        return self.stage.member(
            self.kind.method, job.request, job.inputs, fate.control, fate.made.append, fate.errors.append
        )

    def _streaming(self) -> int:
        """Bytes of the blocks that are used and do not stay."""
        residence = self.stage._residence
        passing = residence._used - residence._slabs.keys()
        return sum(unit.nbytes for unit in residence.layout.blocks if unit.name in passing)


def limits(stage: Stage[Any]) -> list[int]:
    """Bytes with no block resident, with one, and so on to all."""
    return list(accumulate(stage.device.cost(unit.nbytes) for unit in stage._residence.units))


def check(run: Run) -> None:
    """Every member ended once: as it does alone, or as its caller made it end."""
    for fate in run.fates:
        assert len(fate.made) + len(fate.errors) == 1
        if fate.errors:
            assert fate.is_ill
            assert isinstance(fate.errors[0], Fault | Cancelled)
        else:
            assert list(leaves(fate.made[0])) == run.model.jobs[run.kind][fate.job].expected
