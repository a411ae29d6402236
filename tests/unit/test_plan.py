"""The plan against brute force on small instances, and on FLUX.2-klein-9B's real sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightx2v.core import STAGES, Policy, StageName
from lightx2v.errors import OutOfMemory
from lightx2v.residency.plan import (
    Share,
    Shares,
    StageSize,
    exposed,
    grant,
    max_replicas,
    model,
    moved,
    plan,
    shares,
    streamed,
    whole,
)

GIB = 2**30
KLEIN = (
    StageSize("encode", (385_875_968,) * 27, 0, GIB // 2, 385_875_968, 1),
    StageSize("denoise", (872_415_232,) * 8 + (436_207_616,) * 24, 700_000_000, 3 * GIB // 2, 872_415_232, 4),
    StageSize("decode", (84_000_000,) * 2, 0, GIB, 84_000_000, 1),
)


def sizes(stage: StageName, most: int = 3) -> st.SearchStrategy[StageSize]:
    units = st.lists(st.integers(1, 6), max_size=most).map(tuple)
    small = st.integers(0, 5)
    return st.builds(StageSize, st.just(stage), units, small, small, small, st.integers(1, 5), st.integers(0, 12))


three = st.tuples(*(sizes(stage) for stage in STAGES if stage != "refine"))
four = st.tuples(*(sizes(stage, most=1 if stage != "denoise" else 2) for stage in STAGES))
models = st.one_of(three, four)


def shares_of(size: StageSize) -> Iterator[Share]:
    counts = [size.rest + sum(size.units[:k]) for k in range(len(size.units) + 1)]
    for resident, placed in product({0, *counts}, counts):
        if resident <= placed:
            yield Share(size.stage, resident, placed)


def fits(stages: tuple[StageSize, ...], shares: tuple[Share, ...], budget: int) -> bool:
    for runner, share in zip(stages, shares, strict=True):
        slot = runner.slot_bytes if share.placed < runner.reachable else 0
        others = sum(other.resident for other in shares if other.stage != runner.stage)
        if share.placed + runner.activation_bytes + slot + others > budget:
            return False
    return True


Cost = tuple[int, int]


def total(stages: tuple[StageSize, ...], shares: tuple[Share, ...]) -> Cost:
    """Bytes waited for, by the clock of the link: each use of a stage takes its copies or its computation, what is
    longer, and the computation is not waiting. And bytes moved."""
    waited = sent = 0
    for size, share in zip(stages, shares, strict=True):
        for use in range(size.planned_passes):
            copies = size.reachable - (share.placed if use else share.resident)
            waited += max(copies, size.overlap_bytes) - size.overlap_bytes
            sent += copies
    return waited, sent


def brute_force(stages: tuple[StageSize, ...], budget: int) -> Cost | None:
    """The least over all pairs of resident and placed."""
    choices = (shares for shares in product(*map(shares_of, stages)) if fits(stages, shares, budget))
    return min((total(stages, shares) for shares in choices), default=None)


def planned(stages: tuple[StageSize, ...], budget: int) -> tuple[Share, ...] | None:
    try:
        shares = plan(stages, budget)
    except OutOfMemory:
        return None
    return tuple(shares[size.stage] for size in stages)


@settings(max_examples=300)
@given(models, st.integers(0, 60))
def test_as_good_as_brute_force(stages: tuple[StageSize, ...], budget: int) -> None:
    shares = planned(stages, budget)
    best = brute_force(stages, budget)
    assert (shares is None) == (best is None)
    if shares is not None:
        assert fits(stages, shares, budget)
        assert all(share in set(shares_of(size)) for size, share in zip(stages, shares, strict=True))
        assert total(stages, shares) == best
        assert best == (sum(map(exposed, stages, shares)), sum(map(moved, stages, shares)))


@given(models, st.integers(0, 60), st.integers(0, 20))
def test_a_larger_budget_is_never_worse(stages: tuple[StageSize, ...], budget: int, more: int) -> None:
    small, large = planned(stages, budget), planned(stages, budget + more)
    if small is not None:
        assert large is not None
        assert total(stages, large) <= total(stages, small)


@given(models)
def test_all_stays_when_it_fits(stages: tuple[StageSize, ...]) -> None:
    budget = sum(size.reachable for size in stages) + max(size.activation_bytes for size in stages)
    assert plan(stages, budget) == whole(stages)


@given(models, st.integers(0, 60))
def test_deterministic(stages: tuple[StageSize, ...], budget: int) -> None:
    assert planned(stages, budget) == planned(stages, budget)


def test_equal_costs_favour_the_stage_with_more_uses() -> None:
    """Half of each could stay for the same four bytes per request."""
    stages = (StageSize("encode", (2, 2), 0, 0, 2, 1), StageSize("denoise", (2, 2), 0, 0, 2, 9))
    assert fits(stages, (Share("encode", 2, 4), Share("denoise", 2, 4)), 6)
    assert plan(stages, 6) == {"encode": Share("encode", 0, 0), "denoise": Share("denoise", 4, 4)}


def test_what_streams_behind_the_computation_leaves_room_for_what_does_not() -> None:
    """Keeping the transformer moves the fewest bytes, but then the encoder comes anew for every request."""
    encode, denoise = StageSize("encode", (5, 5), 0, 0, 5, 1), StageSize("denoise", (5,) * 4, 0, 0, 5, 4)
    assert plan((encode, denoise), 25)["encode"].resident == 0
    hidden = replace(denoise, overlap_bytes=10)
    shares = plan((encode, hidden), 25)
    assert shares == {"encode": Share("encode", 10, 10), "denoise": Share("denoise", 10, 10)}
    assert exposed(hidden, shares["denoise"]) == 0


def test_too_little_names_the_stage_its_need_and_the_budget() -> None:
    stages = (StageSize("encode", (2,), 0, 0, 2, 1), StageSize("denoise", (8, 9), 3, 4, 9, 4))
    with pytest.raises(OutOfMemory, match=r"denoise needs 16 bytes .* budget is 15"):
        plan(stages, 15)
    assert plan(stages, 16)["denoise"] == Share("denoise", 3, 3)


@pytest.mark.parametrize("gib", [31.35, 24, 16, 12, 6])
def test_klein_overflow_falls_on_the_encoder_first(gib: float) -> None:
    shares = plan(KLEIN, int(gib * GIB))
    encode, denoise = shares["encode"], shares["denoise"]
    if gib > 30:
        assert shares == whole(KLEIN)
    elif gib > 20:
        assert denoise.resident == KLEIN[1].reachable
        assert 0.5 * KLEIN[0].reachable < encode.resident < KLEIN[0].reachable
    else:
        assert encode.resident < 0.05 * KLEIN[0].reachable
        spare = int(gib * GIB) - grant(KLEIN[1], denoise).total
        assert 0 <= spare < 2 * max(KLEIN[1].units), "the transformer uses nearly all there is"
    print(gib, [(share.stage, f"{share.resident / 1e9:.2f}", f"{share.placed / 1e9:.2f}") for share in shares.values()])


def shares_at_rest(shares: Shares) -> list[int]:
    return [share.resident for share in shares.values()]


def test_fixed_policies() -> None:
    assert whole(KLEIN)["denoise"] == Share("denoise", KLEIN[1].reachable, KLEIN[1].reachable)
    assert model(KLEIN)["denoise"] == Share("denoise", 0, KLEIN[1].reachable)
    assert streamed(KLEIN)["denoise"] == Share("denoise", 0, 700_000_000)
    assert shares_at_rest(model(KLEIN)) == shares_at_rest(streamed(KLEIN)) == [0, 0, 0]
    assert grant(KLEIN[1], streamed(KLEIN)["denoise"]).total == 700_000_000 + 3 * GIB // 2 + 872_415_232


def test_room_counts_replicas_that_run_at_once() -> None:
    size = StageSize("encode", (4,), 0, 1, 4, 1)
    share = whole([size])["encode"]
    assert max_replicas(size, share, free=3 * 6, context=1) == 3
    assert max_replicas(size, share, free=3 * 6 - 1, context=1) == 2
    assert max_replicas(size, share, free=-5, context=1) == 1


@pytest.mark.parametrize("policy", ["auto", "whole", "model", "streamed"])
def test_a_budget_that_no_run_fits_in_is_refused(policy: Policy) -> None:
    with pytest.raises(OutOfMemory, match="denoise needs"):
        shares(policy, KLEIN[1:2], GIB)
