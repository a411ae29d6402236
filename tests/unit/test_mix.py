"""The mix of models of the last minute, and when a plan for it is stale."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightx2v.residency.mix import CHANGE, LEAST_SHARE, PLAN_SECONDS, WINDOW_SECONDS, Mix
from lightx2v.residency.together import Traffic

runs = st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.0, 20.0)), max_size=30)


def noted(order: str, each: float = 1.0) -> Mix[str]:
    """Encoder and transformer of each model in turn."""
    mix = Mix[str]()
    for index, model in enumerate(order):
        mix.note(model, "encode", index * each)
        mix.note(model, "denoise", index * each)
    return mix


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("", {"a": Traffic(0.5, 0.5), "b": Traffic(0.5, 0.5)}),
        ("abab", {"a": Traffic(0.5, 1.0), "b": Traffic(0.5, 1.0)}),
        ("aaaabbbb", {"a": Traffic(0.5, 0.25), "b": Traffic(0.5, 0.25)}),
        ("aaab", {"a": Traffic(0.75, 1 / 3), "b": Traffic(0.25, 1.0)}),
        ("aa", {"a": Traffic(1.0, 0.5), "b": Traffic(LEAST_SHARE, 1 - LEAST_SHARE)}),
    ],
)
def test_shares_and_switches(order: str, expected: dict[str, Traffic]) -> None:
    assert noted(order).plan("ab") == expected


def test_runs_that_interleave_within_a_request_switch_too() -> None:
    mix = Mix[str]()
    for stage in ("encode", "denoise"):
        for at, model in enumerate("ab"):
            mix.note(model, stage, float(at))
    assert mix.plan("ab") == {"a": Traffic(0.5, 1.0), "b": Traffic(0.5, 1.0)}


@given(runs)
def test_only_the_last_minute_counts(runs: list[tuple[str, float]]) -> None:
    mix, at, times = Mix[str](), 0.0, []
    for model, wait in runs:
        at += wait
        mix.note(model, "denoise", at)
        times.append((model, at))
    recent = [model for model, when in times if when > at - WINDOW_SECONDS]
    made = mix.plan("ab")
    for model in "ab":
        part = recent.count(model) / len(recent) if recent else 0.5
        assert made[model].share == pytest.approx(max(LEAST_SHARE, part))


def test_a_plan_is_stale_when_the_mix_is_another_one() -> None:
    mix = noted("ab" * 5)
    mix.plan("ab")
    for at in range(10, 15):
        mix.note("a", "encode", float(at))
    assert not mix.is_stale(9 + PLAN_SECONDS - 0.1), "too early"
    assert not mix.is_stale(9 + PLAN_SECONDS), "10 of 15"
    for at in range(19, 40):
        mix.note("a", "encode", float(at))
    assert mix.is_stale(40.0)
    mix.plan("ab")
    assert not mix.is_stale(50.0)


def test_a_plan_is_stale_when_the_models_alternate_otherwise() -> None:
    mix = noted("aaaaabbbbb")
    mix.plan("ab")
    for at in range(10, 40):
        mix.note("ab"[at % 2], "encode", float(at))
    assert mix.is_stale(40.0)


def test_without_runs_or_others_a_plan_stays() -> None:
    mix = noted("ab")
    mix.plan("ab")
    assert not mix.is_stale(1000.0)
    mix.plan("a")
    mix.note("a", "encode", 1001.0)
    assert not mix.is_stale(1020.0)
    assert 0 < CHANGE < 1
