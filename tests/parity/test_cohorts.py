"""Requests that pass a stage's blocks together: each has the bits of a request alone, whatever the others do."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightx2v.errors import Cancelled
from lightx2v.models.visits import Move
from lightx2v.residency.lease import Grant
from lightx2v.stages.cohort import Cohort, Member
from lightx2v.stages.stage import Stage
from tests.parity.cohorts import Fate, Fault, Kind, Model, leaves

VARIANTS = ("distilled", "dev", "z_base", "qwen_image", "edit_2511", "wan_i2v_experts", "wan_clip", "wan_ti2v")
ROOM = 1 << 40


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightx2v.models.qwen_image.spec.REFERENCE_AREA", 64 * 64)
        checkpoint = request.getfixturevalue(request.param)
        model = Model(checkpoint, tmp_path_factory.mktemp("cohorts"))
    yield model
    for stage in model.stages.values():
        stage.close()


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
    return list(accumulate(unit.nbytes for unit in stage._residence.units))


def check(run: Run) -> None:
    """Every member ended once: as it does alone, or as its caller made it end."""
    for fate in run.fates:
        assert len(fate.made) + len(fate.errors) == 1
        if fate.errors:
            assert fate.is_ill
            assert isinstance(fate.errors[0], Fault | Cancelled)
        else:
            assert list(leaves(fate.made[0])) == run.model.jobs[run.kind][fate.job].expected


@given(data=st.data())
@settings(max_examples=12)
def test_members_have_the_bits_of_a_request_alone(model: Model, data: st.DataObject) -> None:
    """Whatever is resident, whoever comes, fails, leaves or gives way, and when."""
    transformers = [kind for kind in model.jobs if kind.stage in ("denoise", "refine")]
    kind = data.draw(st.sampled_from([*model.jobs, *transformers * 2]))
    stage, numbers = model.stages[kind.stage], st.none() | st.integers(1, 4)
    jobs = st.integers(0, len(model.jobs[kind]) - 1)
    fates = data.draw(st.lists(st.builds(Fate, jobs, st.integers(0, 4), numbers, numbers), min_size=1, max_size=5))
    weights = st.sampled_from(limits(stage))
    shares = data.draw(st.lists(st.tuples(weights, weights), min_size=1, max_size=3))
    room, width = data.draw(st.sampled_from((ROOM, ROOM, 0))), data.draw(st.integers(1, 4))
    grants = [Grant(max(pair), room, stage.slot_bytes, min(pair), width=width) for pair in shares]
    run = Run(model, kind, fates)
    run.through(grants, data.draw(st.frozensets(st.integers(1, 6), max_size=3)))
    check(run)
    assert stage._residence._bound is None
    assert not stage.component.module._forward_hooks


def test_a_round_moves_what_streams_once(model: Model) -> None:
    """However many members it has, and nothing is moved for those that have ended."""
    for kind, jobs in model.jobs.items():
        stage = model.stages[kind.stage]
        stage.drop(0)
        run = Run(model, kind, [Fate(job, 0) for job in range(len(jobs))])
        before = model.device.shared
        run.through([Grant(stage.rest, ROOM, stage.slot_bytes, stage.rest, width=len(jobs))], frozenset())
        check(run)
        assert model.device.shared - before == stage.rest + run.expected
        assert run.passes == max(stage.passes(job.request) for job in jobs)
        assert stage.resident == stage.rest
