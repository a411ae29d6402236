"""Who is granted memory, when, and who gives way for it."""

from __future__ import annotations

import asyncio
import random

import pytest

from deployments.card import coordinator as module
from deployments.card.coordinator import Coordinator
from deployments.card.members import Member
from lightx2v.errors import OutOfMemory, StaleEpoch
from lightx2v.residency.lease import Fetch, Work
from lightx2v.types import STAGES, Progress
from tests.unit.card.members import (
    FakeCard,
    Processes,
    ask,
    granted,
    held,
    join,
    lease_of,
    member,
    release,
    running,
    shrink,
    within,
)

pytestmark = pytest.mark.timeout(30)


async def test_a_lease_is_granted_and_released(card: FakeCard, processes: Processes) -> None:
    coordinator, one = Coordinator("card"), member(processes())
    epoch = await join(coordinator, one)
    lease = await within(lease_of(coordinator, epoch, one.holder.id, workspace=30))
    assert (lease.holder, lease.weights, lease.extra_bytes, lease.keep) == (one.holder.id, 60, 30, 60)
    assert (await running(coordinator), await granted(coordinator)) == ([one.holder.pid], 90)
    await release(coordinator, lease, 60, 60)
    assert (await running(coordinator), await granted(coordinator)) == ([], 60)
    assert (await coordinator.report())["h2d_bytes_total"] == 60


async def test_the_progress_of_a_run_is_known_while_it_lasts(card: FakeCard, processes: Processes) -> None:
    coordinator, one, other = Coordinator("card"), member(processes()), member(processes(), "encode", 30)
    epoch = await join(coordinator, one, other)
    lease = await within(await ask(coordinator, one))
    work = Work(1, 1.0, 0.0)
    for step in (1, 2):
        await coordinator.tell(epoch, one.holder.id, work, {"a": Progress(step, 4), "c": Progress(0, 9)})
    await coordinator.tell(epoch, other.holder.id, work, {"b": Progress(1, 4)})
    found = [await coordinator.progress(name) for name in "abc"]
    assert found == [Progress(2, 4), None, Progress(0, 9)], "b does not run"
    await release(coordinator, lease, 60)
    await coordinator.tell(epoch, one.holder.id, work, {"a": Progress(3, 4)})
    assert await coordinator.progress("a") is None
    with pytest.raises(StaleEpoch):
        await coordinator.tell("another", one.holder.id, work, {"a": Progress(4, 4)})


async def test_the_oldest_request_is_served_first(card: FakeCard, processes: Processes) -> None:
    coordinator = Coordinator("card")
    first, young, old = (member(processes(), policy="model") for _ in range(3))
    await join(coordinator, first, young, old)
    lease = await within(await ask(coordinator, first))
    waiting_young, waiting_old = await ask(coordinator, young, 2.0), await ask(coordinator, old, 1.0)
    assert (await coordinator.report())["waiting"] == 2
    await release(coordinator, lease)
    assert await running(coordinator) == [old.holder.pid]
    await release(coordinator, await within(waiting_old))
    assert (await within(waiting_young)).holder == young.holder.id


async def test_who_must_give_way_is_told_and_the_grant_follows(card: FakeCard, processes: Processes) -> None:
    coordinator, resting, waiter = Coordinator("card"), member(processes(), "encode"), member(processes())
    epoch = await join(coordinator, resting, waiter)
    orders = asyncio.create_task(coordinator.next_command(epoch, resting.holder.id))
    await release(coordinator, await within(await ask(coordinator, resting)), 60)
    asked = await ask(coordinator, waiter)
    order = shrink(await within(orders))
    assert (order.holder, order.weights) == (resting.holder.id, 40)
    assert (await running(coordinator), await granted(coordinator)) == ([], 60)
    await coordinator.resized(epoch, resting.holder.id, order.id, held(40))
    assert (await within(asked)).weights == 60
    assert await granted(coordinator) == 100
    report = await coordinator.report()
    assert (report["shrinks_total"], report["evictions_total"]) == (1, 0)


async def test_who_runs_next_fetches_while_another_runs(card: FakeCard, processes: Processes) -> None:
    """As much as it will be granted, where that and its workspace are free; under a policy of `auto`."""
    coordinator = Coordinator("card")
    encode = member(processes(), "encode", 30, policy="auto")
    denoise = member(processes(), "denoise", 40, workspace=20, policy="auto")
    epoch = await join(coordinator, encode, denoise)
    lease = await within(await ask(coordinator, encode, workspace=10))
    order = await within(coordinator.next_command(epoch, denoise.holder.id))
    assert isinstance(order, Fetch)
    assert (order.holder, order.weights, await granted(coordinator)) == (denoise.holder.id, 40, 80)
    await coordinator.resized(epoch, denoise.holder.id, order.id, held(40, 40))
    assert (await coordinator.report())["h2d_bytes_total"] == 40, "what is fetched ahead counts when it is there"
    await release(coordinator, lease, 30)
    assert (await within(await ask(coordinator, denoise, workspace=20))).weights == 40
    report = await coordinator.report()
    assert (report["fetches_total"], report["shrinks_total"], report["granted_bytes"]) == (1, 0, 90)


async def test_two_experts_are_never_both_there_where_one_fits(card: FakeCard, processes: Processes) -> None:
    """Request after request: each is placed only once the other has reported that it gave way."""
    coordinator = Coordinator("card")
    experts = [member(processes(), stage) for stage in ("denoise", "refine")]
    epoch = await join(coordinator, *experts)
    await release(coordinator, await within(await ask(coordinator, experts[1])), 60)
    for turn in range(4):
        runner, resting = experts[turn % 2], experts[(turn + 1) % 2]
        asked = await ask(coordinator, runner, float(turn), workspace=40)
        order = shrink(await within(coordinator.next_command(epoch, resting.holder.id)))
        assert (order.weights, asked.done(), await granted(coordinator)) == (0, False, 60)
        await coordinator.resized(epoch, resting.holder.id, order.id, held(0))
        await release(coordinator, await within(asked), 60)
    report = await coordinator.report()
    assert (report["evictions_total"], report["peak_granted_bytes"]) == (4, 100)


async def test_an_order_waits_for_who_listens_later(card: FakeCard, processes: Processes) -> None:
    coordinator, resting, waiter = Coordinator("card"), member(processes(), "encode"), member(processes())
    epoch = await join(coordinator, resting, waiter)
    await release(coordinator, await within(await ask(coordinator, resting)), 60)
    await ask(coordinator, waiter)
    assert shrink(await within(coordinator.next_command(epoch, resting.holder.id))).weights == 40


async def test_who_does_not_give_way_is_named_to_the_waiter(
    card: FakeCard, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    coordinator, unresponsive, waiter = Coordinator("card"), member(processes(), "encode"), member(processes())
    await join(coordinator, unresponsive, waiter)
    await release(coordinator, await within(await ask(coordinator, unresponsive)), 60)
    with pytest.raises(OutOfMemory, match=rf"pid {unresponsive.holder.pid}\) holds 60 and did not give way"):
        await within(await ask(coordinator, waiter))


async def test_the_report_has_what_the_api_documents(card: FakeCard, processes: Processes) -> None:
    coordinator = Coordinator("GPU-1")
    encode, denoise = member(processes(), "encode", 40, context=5), member(processes(), context=5)
    await join(coordinator, encode, denoise)
    await release(coordinator, await within(await ask(coordinator, encode)), 40, 40)
    report = await coordinator.report()
    assert report.keys() >= {
        *("id", "budget_bytes", "granted_bytes", "peak_granted_bytes", "h2d_bytes_total", "d2h_bytes_total"),
        *("grants_total", "shrinks_total", "evictions_total", "stages"),
    }
    assert (report["id"], report["budget_bytes"], report["granted_bytes"]) == ("GPU-1", 100, 50)
    assert (report["h2d_bytes_total"], report["d2h_bytes_total"], report["grants_total"]) == (40, 0, 1)
    documented = ("model", "stage", "resident_bytes", "reachable_bytes")
    stages = [tuple(stage[key] for key in documented) for stage in report["stages"]]
    assert stages == [("klein", "encode", 40, 40), ("klein", "denoise", 0, 60)]


async def test_under_load_the_budget_holds_and_nobody_starves(card: FakeCard, processes: Processes) -> None:
    """Four stages that fit two at a time, at best; every fourth request is cancelled wherever it is."""
    coordinator, chance = Coordinator("card"), random.Random(0)
    members = [member(processes(), stage, 40, workspace=10) for stage in STAGES]
    epoch = await join(coordinator, *members)
    weights = {one.holder.id: 0 for one in members}

    async def obey(name: str) -> None:
        while True:
            order = shrink(await coordinator.next_command(epoch, name))
            weights[name] = min(weights[name], order.weights)
            await coordinator.resized(epoch, name, order.id, held(weights[name]))

    async def use(one: Member, admitted_at: float) -> None:
        lease = await lease_of(coordinator, epoch, one.holder.id, admitted_at, workspace=10)
        weights[one.holder.id] = lease.weights
        try:
            assert await granted(coordinator) <= 100
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
        finally:
            await release(coordinator, lease, lease.keep)

    async def request(one: Member, turn: asyncio.Lock, number: int) -> None:
        async with turn:
            used = asyncio.create_task(use(one, float(number)))
            if number % 4 == 0:
                for _ in range(chance.randrange(8)):
                    await asyncio.sleep(0)
                used.cancel()
            done, _ = await asyncio.wait([used])
            assert all(task.cancelled() or task.exception() is None for task in done)

    listening = [asyncio.create_task(obey(one.holder.id)) for one in members]
    turns = [asyncio.Lock() for _ in members]
    requests = [request(one, turn, number) for number in range(60) for one, turn in zip(members, turns, strict=True)]
    await within(asyncio.gather(*requests), 20.0)
    assert not any(task.done() for task in listening)
    assert (await running(coordinator), (await coordinator.report())["waiting"]) == ([], 0)
    assert await granted(coordinator) == sum(weights.values())
    assert (await coordinator.report())["shrinks_total"] > 10
    for task in listening:
        task.cancel()
