"""What is shared out: the card, less what others hold, and whom it suffices for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deployments.card import coordinator as module
from deployments.card.coordinator import Coordinator
from lightx2v.errors import OutOfMemory, StaleEpoch
from lightx2v.types import Policy
from tests.unit.card.members import (
    LONG_SECONDS,
    FakeCard,
    Processes,
    ask,
    granted,
    join,
    member,
    within,
)

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize("cap", ["card", "budget"])
async def test_a_budget_too_small_for_auto_is_told(card: FakeCard, processes: Processes, cap: str) -> None:
    """Two units of 30 and a workspace of 20: one unit in the slot at a time takes 50."""
    room = 49 if cap == "card" else 100
    card.nbytes, budget = room, 49 if cap == "budget" else None
    one = member(processes(), units=2, workspace=20, policy="auto", budget=budget)
    coordinator = Coordinator("card")
    epoch = await join(coordinator, one)
    with pytest.raises(OutOfMemory, match="denoise needs 50 bytes with every unit streamed; the budget is 49"):
        await coordinator.ready(epoch, one.holder.id)
    with pytest.raises(OutOfMemory, match="50 bytes"):
        await within(await ask(coordinator, one, workspace=20))
    assert await coordinator.max_replicas(epoch, one.holder.id) == 1
    (stage,) = (await coordinator.report())["stages"]
    assert stage["planned_bytes"] is None


async def test_a_budget_just_large_enough_for_auto(card: FakeCard, processes: Processes) -> None:
    card.nbytes = 50
    coordinator, one = Coordinator("card"), member(processes(), units=2, workspace=20, policy="auto")
    epoch = await join(coordinator, one)
    await coordinator.ready(epoch, one.holder.id)
    lease = await within(await ask(coordinator, one, workspace=20))
    assert (lease.weights, lease.extra_bytes) == (0, 50)
    assert await granted(coordinator) == 50


async def test_a_request_larger_than_planned_places_less_if_its_policy_can_stream(
    card: FakeCard, processes: Processes
) -> None:
    """Planned for a workspace of 20, asked for 50; what is not placed streams through a slot of 30."""
    streaming: tuple[Policy, ...] = ("auto", "streamed")
    for policy in streaming:
        coordinator, one = Coordinator("card"), member(processes(), units=2, workspace=20, policy=policy)
        await join(coordinator, one)
        lease = await within(await ask(coordinator, one, workspace=50))
        assert (lease.weights, lease.extra_bytes) == (20 if policy == "auto" else 0, 80)
    complete: tuple[Policy, ...] = ("whole", "model")
    for policy in complete:
        coordinator, one = Coordinator("card"), member(processes(), units=2, workspace=20, policy=policy)
        await join(coordinator, one)
        with pytest.raises(OutOfMemory, match="at least 110"):
            await within(await ask(coordinator, one, workspace=50))


async def test_a_model_that_does_not_fit_leaves_others_in_peace(card: FakeCard, processes: Processes) -> None:
    coordinator = Coordinator("card")
    large, small = member(processes(), nbytes=200, policy="auto", model="large"), member(processes(), nbytes=60)
    epoch = await join(coordinator, large, small)
    with pytest.raises(OutOfMemory):
        await coordinator.ready(epoch, large.holder.id)
    await coordinator.ready(epoch, small.holder.id)
    assert (await within(await ask(coordinator, small))).weights == 60


async def test_a_whole_model_that_does_not_fit_is_told(card: FakeCard, processes: Processes) -> None:
    coordinator, one = Coordinator("card"), member(processes(), nbytes=200)
    epoch = await join(coordinator, one)
    with pytest.raises(OutOfMemory, match=r"needs 200 bytes .* the budget is 100"):
        await within(await ask(coordinator, one))
    with pytest.raises(OutOfMemory, match="200 bytes"):
        await coordinator.ready(epoch, one.holder.id)
    assert (await coordinator.report())["waiting"] == 0


async def test_the_budget_is_the_lowest_cap_less_what_strangers_hold(card: FakeCard, processes: Processes) -> None:
    coordinator = Coordinator("card")
    first, second = member(processes(), budget=80), member(processes(), budget=90)

    async def budget() -> object:
        return (await coordinator.report())["budget_bytes"]

    assert await budget() == 100
    await join(coordinator, first)
    assert await budget() == 80
    card.listed = {first.holder.pid: 10, second.holder.pid: 10, 1: 30}
    await join(coordinator, second)
    assert await budget() == 70, "100 less the stranger's 30; our own do not count"


async def test_who_has_not_joined_yet_is_no_stranger(
    card: FakeCard, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the death of a coordinator its successor hears of one stage after another."""
    monkeypatch.setattr(module, "SETTLE_SECONDS", LONG_SECONDS)
    coordinator, first, second = Coordinator("card"), member(processes()), member(processes(), "encode", 40)
    card.listed = {first.holder.pid: 60, second.holder.pid: 40}
    epoch = await join(coordinator, first)
    await coordinator.ready(epoch, first.holder.id)
    assert (await coordinator.report())["budget_bytes"] == 100


@pytest.mark.parametrize("asks", [True, False])
async def test_a_stranger_that_has_left_takes_no_room(card: FakeCard, processes: Processes, asks: bool) -> None:
    coordinator, one = Coordinator("card"), member(processes())
    card.listed = {one.holder.pid: 1, 1: 50}
    epoch = await join(coordinator, one)
    with pytest.raises(OutOfMemory):
        await within(await ask(coordinator, one))
    with pytest.raises(OutOfMemory):
        await coordinator.ready(epoch, one.holder.id)
    card.listed = {one.holder.pid: 1}
    if asks:
        assert (await within(await ask(coordinator, one))).weights == 60
    await coordinator.ready(epoch, one.holder.id)


async def test_pids_of_another_namespace_are_not_taken_for_strangers(card: FakeCard, processes: Processes) -> None:
    coordinator, one = Coordinator("card"), member(processes())
    card.listed = {1: 60, 2: 30}
    await join(coordinator, one)
    assert (await coordinator.report())["budget_bytes"] == 100


async def test_the_budget_follows_who_comes_and_goes(card: FakeCard, processes: Processes) -> None:
    coordinator, process = Coordinator("card"), processes()
    capped, other = member(process, budget=50), member(processes(), "encode")
    await join(coordinator, capped, other)
    with pytest.raises(OutOfMemory):
        await within(await ask(coordinator, other))
    process.kill()
    process.wait()
    await within(card.looked_at(2))
    assert (await coordinator.report())["budget_bytes"] == 100
    await within(await ask(coordinator, other))


async def test_what_a_process_takes_is_planned_anew_when_it_is_measured_again(
    card: FakeCard, processes: Processes
) -> None:
    coordinator, one = Coordinator("card"), member(processes(), nbytes=60, context=50)
    epoch = await join(coordinator, one)
    with pytest.raises(OutOfMemory, match="the budget is 50"):
        await within(await ask(coordinator, one))
    one = replace(one, holder=replace(one.holder, context=40))
    await coordinator.update(epoch, one.holder.id, one)
    await within(await ask(coordinator, one))
    assert await granted(coordinator) == 100
    with pytest.raises(StaleEpoch):
        await coordinator.update("another", one.holder.id, one)


async def test_room_is_for_replicas_beside_one_of_each_other_stage(card: FakeCard, processes: Processes) -> None:
    coordinator = Coordinator("card")
    encode = member(processes(), "encode", 20, context=5)
    denoise = member(processes(), "denoise", 10, context=5, workspace=5)
    epoch = await join(coordinator, encode, member(processes(), "decode", 10, context=5), denoise)
    assert await coordinator.max_replicas(epoch, denoise.holder.id) == 3, "40 for the others, 20 each"
    assert await coordinator.max_replicas(epoch, encode.holder.id) == 2, "30 for the others, 25 each"


async def test_replicas_of_other_settings_are_planned_apart(card: FakeCard, processes: Processes) -> None:
    """As while a deployment is replaced by one of another dtype, or where two applications call their models alike."""
    coordinator = Coordinator("card")
    old = member(processes(), "denoise", 60, policy="auto", settings="bf16")
    new = member(processes(), "denoise", 30, policy="model", settings="fp8")
    await join(coordinator, old, new)
    report = await coordinator.report()
    assert [stage["planned_bytes"] for stage in report["stages"]] == [60, 0]
    assert (await within(await ask(coordinator, old))).weights == 60
    assert (await within(await ask(coordinator, new))).weights == 30
