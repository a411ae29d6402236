"""The scaling policy is a function of what Serve counts and of what the replicas say of their cards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments import scaling
from deployments.scaling import QueueDepth


def context(requests: float, room: list[float] | None = None, target: int = 1) -> Any:
    """What Serve's controller gives; `room` as each replica reported it, None where there are no reports yet."""
    metrics = {} if room is None else {"max_replicas": {f"replica-{index}": value for index, value in enumerate(room)}}
    return SimpleNamespace(total_num_requests=requests, target_num_replicas=target, aggregated_metrics=metrics)


def wanted(
    requests: float, *, room: list[float] | None = None, most_per_gpu: int | None = None, target: int = 1
) -> int:
    replicas, state = QueueDepth(2.0, most_per_gpu)(context(requests, room, target))
    assert state == {}
    assert type(replicas) is int
    return replicas


@pytest.mark.parametrize(
    ("requests", "replicas"), [(0, 1), (0.5, 1), (2, 1), (2.1, 2), (3, 2), (4, 2), (5, 3), (16, 8), (17, 8), (1e6, 8)]
)
def test_a_replica_for_every_two_requests_up_to_the_room(requests: float, replicas: int) -> None:
    assert wanted(requests, room=[8.0]) == replicas


@pytest.mark.parametrize(
    ("gpus", "most_per_gpu", "replicas"), [(0, 4, 1), (1, 4, 2), (3, 4, 6), (3, 1, 3), (3, None, 2)]
)
def test_the_room_is_per_gpu_that_the_cluster_has_by_now(
    monkeypatch: pytest.MonkeyPatch, gpus: int, most_per_gpu: int | None, replicas: int
) -> None:
    """KubeRay submits an application before its GPU nodes have joined. A cluster without GPUs is one card."""
    monkeypatch.setattr(scaling, "gpus", lambda: gpus)
    assert wanted(100, room=[2.0], most_per_gpu=most_per_gpu) == replicas


def test_one_replica_stays_though_no_card_has_room() -> None:
    assert wanted(100, room=[0.0]) == wanted(0, room=[0.0]) == 1


def test_replicas_that_disagree_are_believed_by_the_best() -> None:
    """A replica that has only joined may not know of its card yet and says 1."""
    assert wanted(100, room=[1.0, 4.0, 3.0]) == 4


@pytest.mark.parametrize("target", [1, 3])
def test_without_reports_nothing_grows(target: int) -> None:
    assert wanted(100, target=target) == target
    assert wanted(0, target=target) == 1


def test_no_metrics_at_all_is_no_report() -> None:
    nothing = context(100, target=2)
    nothing.aggregated_metrics = None
    assert QueueDepth(2.0, None)(nothing) == (2, {})
    nothing.aggregated_metrics = {"max_replicas": {}}
    assert QueueDepth(2.0, None)(nothing) == (2, {})


@given(
    requests=st.floats(0, 1e6),
    room=st.lists(st.floats(0, 64), max_size=4) | st.none(),
    target=st.integers(1, 8),
)
def test_always_at_least_one_and_never_more_than_there_is_room_for(
    requests: float, room: list[float] | None, target: int
) -> None:
    most = max(1, int(max(room))) if room else target
    replicas = wanted(requests, room=room, target=target)
    assert 1 <= replicas <= most
    assert replicas <= wanted(requests + 1, room=room, target=target)
