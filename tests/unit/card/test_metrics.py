"""What Prometheus is told of a card, by Ray's own metrics: registered under their names and fed by the coordinator."""

from __future__ import annotations

from collections import defaultdict

import pytest
from ray.util.metrics import Counter, Gauge

from deployments.card.coordinator import Coordinator
from tests.unit.card.members import FakeCard, Processes, ask, held, join, member, release, shrink, within

pytestmark = pytest.mark.timeout(30)

Tags = tuple[str, ...]


class Recorder:
    """Follows what is recorded, and lets Ray have it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counted: defaultdict[tuple[str, Tags], float] = defaultdict(float)
        self.gauges: dict[tuple[str, Tags], float] = {}
        inc, put = Counter.inc, Gauge.set

        def count(metric: Counter, value: float, tags: dict[str, str]) -> None:
            inc(metric, value, tags)
            self.counted[metric.info["name"], tuple(tags.values())] += value

        def set_to(metric: Gauge, value: float, tags: dict[str, str]) -> None:
            put(metric, value, tags)
            self.gauges[metric.info["name"], tuple(tags.values())] = value

        monkeypatch.setattr(Counter, "inc", count)
        monkeypatch.setattr(Gauge, "set", set_to)


async def test_a_run_that_takes_the_place_of_another(
    card: FakeCard, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Recorder(monkeypatch)
    coordinator, resting, waiter = Coordinator("GPU-1"), member(processes(), "encode"), member(processes())
    epoch = await join(coordinator, resting, waiter)
    await release(coordinator, await within(await ask(coordinator, resting)), 60, 60)
    asked = await ask(coordinator, waiter)
    assert told.gauges["lightx2v_waiting_runs", ("GPU-1",)] == 1
    command = shrink(await within(coordinator.next_command(epoch, resting.holder.id)))
    await coordinator.resized(epoch, resting.holder.id, command.id, held(0, 75))
    await within(asked)
    assert dict(told.counted) == {
        ("lightx2v_grants_total", ("GPU-1",)): 2,
        ("lightx2v_shrinks_total", ("GPU-1",)): 1,
        ("lightx2v_evictions_total", ("GPU-1",)): 1,
        ("lightx2v_h2d_bytes_total", ("GPU-1", "klein", "encode")): 75,
    }
    assert told.gauges == {
        ("lightx2v_budget_bytes", ("GPU-1",)): 100,
        ("lightx2v_granted_bytes", ("GPU-1",)): 60,
        ("lightx2v_waiting_runs", ("GPU-1",)): 0,
        ("lightx2v_running_leases", ("GPU-1",)): 1,
    }
