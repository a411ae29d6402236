"""Calls that are cancelled, lost, late, or from another epoch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from deployments.card import coordinator as module
from deployments.card.coordinator import Coordinator
from lightx2v.errors import DeadlineExceeded, StaleEpoch
from lightx2v.residency.gate import Gate
from lightx2v.residency.lease import Lease, Recall, Work
from lightx2v.types import Policy, Progress
from tests.unit.card.members import (
    NOTHING,
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


async def test_who_is_cancelled_while_waiting_gets_nothing(card: FakeCard, processes: Processes) -> None:
    coordinator, first, second = Coordinator("card"), member(processes()), member(processes())
    await join(coordinator, first, second)
    lease = await within(await ask(coordinator, first))
    asked = await ask(coordinator, second)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(asked)
    assert (await coordinator.report())["waiting"] == 0
    await release(coordinator, lease)
    assert (await running(coordinator), await granted(coordinator)) == ([], 0)


async def test_who_is_cancelled_as_it_is_granted_gets_nothing(card: FakeCard, processes: Processes) -> None:
    coordinator, first, second = Coordinator("card"), member(processes()), member(processes())
    await join(coordinator, first, second)
    lease = await within(await ask(coordinator, first))
    asked = await ask(coordinator, second)
    await release(coordinator, lease)
    assert await running(coordinator) == [second.holder.pid]
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(asked)
    assert (await running(coordinator), await granted(coordinator)) == ([], 0)


async def test_a_grant_whose_reply_was_lost_is_abandoned(card: FakeCard, processes: Processes) -> None:
    coordinator, one = Coordinator("card"), member(processes())
    epoch = await join(coordinator, one)
    await release(coordinator, await within(await ask(coordinator, one)), 60)
    await within(await ask(coordinator, one, workspace=40))
    assert await granted(coordinator) == 100
    for _ in range(2):
        await coordinator.abandon(epoch, one.holder.id)
        assert (await running(coordinator), await granted(coordinator)) == ([], 60)


async def test_an_abandoned_call_ends(card: FakeCard, processes: Processes) -> None:
    """A caller that goes away does not end its call to an actor; pending ones would fill it to its concurrency."""
    coordinator, first, second = Coordinator("card"), member(processes()), member(processes())
    epoch = await join(coordinator, first, second)
    await within(await ask(coordinator, first))
    asked = await ask(coordinator, second)
    await coordinator.abandon(epoch, second.holder.id)
    assert (await coordinator.report())["waiting"] == 0
    done, _ = await asyncio.wait([asked], timeout=1.0)
    assert done == {asked}
    assert asked.cancelled() or asked.exception() is not None


async def test_abandoning_does_not_touch_what_was_returned(card: FakeCard, processes: Processes) -> None:
    coordinator, one = Coordinator("card"), member(processes())
    epoch = await join(coordinator, one)
    await release(coordinator, await within(await ask(coordinator, one)), 60)
    await coordinator.abandon(epoch, one.holder.id)
    assert await granted(coordinator) == 60


async def test_a_waiter_expires(card: FakeCard, processes: Processes) -> None:
    coordinator, first, second = Coordinator("card"), member(processes()), member(processes())
    await join(coordinator, first, second)
    await within(await ask(coordinator, first))
    with pytest.raises(DeadlineExceeded):
        await within(await ask(coordinator, second, seconds=0.05))
    assert (await coordinator.report())["waiting"] == 0


Call = Callable[[Coordinator, str, str], Awaitable[Any]]
FENCED: dict[str, Call] = {
    "lease": lambda coordinator, epoch, name: lease_of(coordinator, epoch, name),
    "next_command": lambda coordinator, epoch, name: coordinator.next_command(epoch, name),
    "resized": lambda coordinator, epoch, name: coordinator.resized(epoch, name, "command", NOTHING),
    "release": lambda coordinator, epoch, name: coordinator.release(epoch, name, "lease", held(0, 9)),
    "abandon": lambda coordinator, epoch, name: coordinator.abandon(epoch, name),
    "tell": lambda coordinator, epoch, name: coordinator.tell(epoch, name, Work(1, 1.0, 0.0), {"a": Progress(1, 2)}),
}


@pytest.mark.parametrize("call", FENCED.values(), ids=FENCED)
async def test_another_epoch_is_refused(card: FakeCard, processes: Processes, call: Call) -> None:
    """And what runs in this one is not touched."""
    coordinator, one = Coordinator("card"), member(processes())
    await join(coordinator, one)
    await within(await ask(coordinator, one))
    before = await coordinator.report()
    with pytest.raises(StaleEpoch):
        await within(call(coordinator, "another", one.holder.id))
    assert await coordinator.report() == before


@pytest.mark.parametrize("method", FENCED)
async def test_who_has_not_joined_is_refused(card: FakeCard, processes: Processes, method: str) -> None:
    coordinator, one = Coordinator("card"), member(processes())
    epoch = await join(coordinator, one)
    with pytest.raises(StaleEpoch):
        await within(FENCED[method](coordinator, epoch, "nobody"))


async def test_a_repeated_call_for_orders_gets_the_next_one(card: FakeCard, processes: Processes) -> None:
    """The first call's connection broke: what it returned, nobody would read."""
    coordinator, resting, waiter = Coordinator("card"), member(processes(), "encode"), member(processes())
    epoch = await join(coordinator, resting, waiter)
    await release(coordinator, await within(await ask(coordinator, resting)), 60)
    broken = asyncio.create_task(coordinator.next_command(epoch, resting.holder.id))
    await asyncio.sleep(0)
    listening = asyncio.create_task(coordinator.next_command(epoch, resting.holder.id))
    await asyncio.sleep(0)
    await ask(coordinator, waiter)
    assert shrink(await within(listening)).weights == 40
    with pytest.raises(asyncio.CancelledError):
        await within(broken)


@pytest.mark.parametrize("policy", ["auto", "whole"])
async def test_a_command_is_given_again_until_it_is_answered(
    card: FakeCard, processes: Processes, policy: Policy
) -> None:
    """The reply was lost on its way: a fetch, or an order to give way, that nobody carries out otherwise."""
    coordinator = Coordinator("card")
    encode, denoise = (
        member(processes(), "encode", 30, policy=policy),
        member(processes(), "denoise", 80, policy=policy),
    )
    epoch = await join(coordinator, encode, denoise)
    if policy == "whole":
        await release(coordinator, await within(await ask(coordinator, denoise)), 80)
    asked = await ask(coordinator, encode)
    lost, again = [await within(coordinator.next_command(epoch, denoise.holder.id)) for _ in range(2)]
    assert lost == again
    assert not isinstance(again, Recall)
    for _ in range(2):
        await coordinator.resized(epoch, denoise.holder.id, again.id, held(70))
    assert (await within(asked)).weights == 30
    assert await granted(coordinator) == 100
    listening = asyncio.create_task(coordinator.next_command(epoch, denoise.holder.id))
    await asyncio.sleep(0)
    assert not listening.done()
    listening.cancel()


async def test_epochs_differ_and_joining_twice_changes_nothing(card: FakeCard, processes: Processes) -> None:
    coordinator, one = Coordinator("card"), member(processes())
    epoch = await join(coordinator, one)
    lease = await within(await ask(coordinator, one))
    assert await coordinator.join(one, NOTHING, None) == epoch
    assert (await running(coordinator), await granted(coordinator)) == ([one.holder.pid], 60)
    await release(coordinator, lease)
    assert await join(Coordinator("card"), one) != epoch


async def test_a_new_epoch_settles_before_it_grants(
    card: FakeCard, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`runner` holds a lease of 70 from the coordinator that died. `small` fits beside it, `large` has to wait."""
    settle = 0.2
    monkeypatch.setattr(module, "SETTLE_SECONDS", settle)
    runner = member(processes(), "denoise", 60, policy="model")
    small, large = member(processes(), "encode", 30, policy="model"), member(processes(), "decode", 60, policy="model")
    began = time.monotonic()
    coordinator = Coordinator("card")
    await join(coordinator, small, large)
    for_small, for_large = await ask(coordinator, small, 1.0), await ask(coordinator, large, 2.0)
    before = Lease(60, 10, 0, 0, "old:1", runner.holder.id)
    await coordinator.join(runner, held(60), before)
    assert (await running(coordinator), await granted(coordinator)) == ([runner.holder.pid], 70)
    lease = await within(for_small)
    assert time.monotonic() - began >= settle
    assert await granted(coordinator) == 100
    await release(coordinator, lease)
    assert (await running(coordinator), await granted(coordinator)) == ([runner.holder.pid], 70)
    await release(coordinator, before)
    assert (await within(for_large)).weights == 60
    assert await granted(coordinator) == 60


async def test_who_rejoins_with_weights_is_asked_for_them(
    card: FakeCard, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.1)
    coordinator, resting, waiter = Coordinator("card"), member(processes(), "encode"), member(processes())
    epoch = await join(coordinator, waiter)
    asked = await ask(coordinator, waiter)
    await coordinator.join(resting, held(60), None)
    order = shrink(await within(coordinator.next_command(epoch, resting.holder.id)))
    assert (order.weights, await granted(coordinator)) == (40, 60)
    await coordinator.resized(epoch, resting.holder.id, order.id, held(40))
    await within(asked)


async def test_a_recall_is_given_until_the_lease_is_back(
    card: FakeCard, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long run gives way to a short one after its bound, and goes on after it."""
    monkeypatch.setattr(module, "GATE", Gate(age_bound=0.05))
    coordinator, long, short = Coordinator("card"), member(processes()), member(processes(), "encode")
    epoch = await join(coordinator, long, short)
    lease = await within(await ask(coordinator, long))
    await coordinator.tell(epoch, long.holder.id, Work(3, 600.0, 0.0), {})
    asked = await ask(coordinator, short)
    lost, again = [await within(coordinator.next_command(epoch, long.holder.id)) for _ in range(2)]
    assert lost == again == Recall(long.holder.id, lease.id)
    stages = {stage["stage"]: stage for stage in (await coordinator.report())["stages"]}
    assert [stages[name]["jobs"] for name in ("denoise", "encode")] == [3, 1]
    await release(coordinator, lease, 60)
    goes_on = await ask(coordinator, long)
    command = shrink(await within(coordinator.next_command(epoch, long.holder.id)))
    await coordinator.resized(epoch, long.holder.id, command.id, held(command.weights))
    await release(coordinator, await within(asked))
    assert (await within(goes_on)).weights == 60
    assert (await coordinator.report())["recalls_total"] == 1
