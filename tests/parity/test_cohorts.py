"""Requests that pass a stage's blocks together: each has the bits of a request alone, whatever the others do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightx2v.residency.lease import Grant
from tests.parity.cohort_run import Run, check, limits
from tests.parity.cohorts import Counting, Fate, Model

VARIANTS = ("distilled", "dev", "z_base", "qwen_image", "edit_2511", "wan_i2v_experts", "wan_clip", "wan_ti2v")
ROOM = 1 << 40


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightx2v.models.qwen_image.spec.REFERENCE_AREA", 64 * 64)
        checkpoint = request.getfixturevalue(request.param)
        model = Model(checkpoint, tmp_path_factory.mktemp("cohorts"), Counting())
    yield model
    for stage in model.stages.values():
        stage.close()


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
        counted = stage.device
        assert isinstance(counted, Counting)
        stage.drop(0)
        run = Run(model, kind, [Fate(job, 0) for job in range(len(jobs))])
        before = counted.shared
        run.through([Grant(stage.rest, ROOM, stage.slot_bytes, stage.rest, width=len(jobs))], frozenset())
        check(run)
        assert counted.shared - before == stage.rest + run.expected
        assert run.passes == max(stage.passes(job.request) for job in jobs)
        assert stage.resident == stage.rest
