"""Processes that die, a driver that lets go late, and a coordinator that nobody needs."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from deployments.card import coordinator as module
from deployments.card.coordinator import Coordinator
from lightx2v.errors import StageLost, StaleEpoch
from lightx2v.residency.lease import Work
from lightx2v.types import Progress
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


async def test_the_progress_of_the_dead_is_forgotten(card: FakeCard, processes: Processes) -> None:
    coordinator, process = Coordinator("card"), processes()
    one = member(process)
    epoch = await join(coordinator, one)
    await within(await ask(coordinator, one))
    await coordinator.tell(epoch, one.holder.id, Work(1, 1.0, 0.0), {"a": Progress(1, 4)})
    process.kill()
    process.wait()

    async def forgotten() -> None:
        while await coordinator.progress("a"):
            await asyncio.sleep(0)

    await within(forgotten())


async def test_nobody_listens_for_the_dead(card: FakeCard, processes: Processes) -> None:
    coordinator, process = Coordinator("card"), processes()
    one = member(process)
    epoch = await join(coordinator, one)
    listening = asyncio.create_task(coordinator.next_command(epoch, one.holder.id))
    await asyncio.sleep(0)
    process.kill()
    process.wait()
    with pytest.raises(asyncio.CancelledError):
        await within(listening)


@pytest.mark.parametrize("in_its_lease", [True, False])
async def test_bytes_of_a_killed_process_return_only_when_the_driver_lets_go(
    card: FakeCard, processes: Processes, in_its_lease: bool
) -> None:
    coordinator, process = Coordinator("card"), processes()
    victim, waiter = member(process), member(processes(), "encode")
    card.listed = {victim.holder.pid: 60, waiter.holder.pid: 1}
    epoch = await join(coordinator, victim, waiter)
    lease = await within(await ask(coordinator, victim, workspace=20))
    if not in_its_lease:
        await release(coordinator, lease, 60, 60)
    held = await granted(coordinator)
    process.kill()
    process.wait()
    asked = await ask(coordinator, waiter)
    await within(card.looked_at(3))
    with pytest.raises(StaleEpoch):
        await lease_of(coordinator, epoch, victim.holder.id)
    assert await granted(coordinator) == held, "the driver still lists it"
    assert not asked.done()
    del card.listed[victim.holder.pid]
    assert (await within(asked)).weights == 60
    report = await coordinator.report()
    assert (report["granted_bytes"], [stage["pid"] for stage in report["stages"]]) == (60, [waiter.holder.pid])
    assert report["h2d_bytes_total"] == (0 if in_its_lease else 60), "what it moved stays counted"


async def test_what_the_driver_never_listed_returns_with_the_process(card: FakeCard, processes: Processes) -> None:
    coordinator, process = Coordinator("card"), processes()
    victim, waiter = member(process), member(processes(), "encode")
    await join(coordinator, victim, waiter)
    await within(await ask(coordinator, victim))
    asked = await ask(coordinator, waiter)
    process.kill()
    assert (await within(asked)).weights == 60


async def test_a_driver_that_does_not_answer_lets_go_of_nothing(card: FakeCard, processes: Processes) -> None:
    coordinator, process = Coordinator("card"), processes()
    victim, waiter = member(process), member(processes(), "encode")
    await join(coordinator, victim, waiter)
    await within(await ask(coordinator, victim))
    asked = await ask(coordinator, waiter)
    card.answers = False
    process.kill()
    await within(card.looked_at(3))
    assert (await granted(coordinator), asked.done()) == (60, False)
    card.answers = True
    assert (await within(asked)).weights == 60


async def test_a_join_that_failed_at_the_driver_can_be_repeated(card: FakeCard, processes: Processes) -> None:
    coordinator, one = Coordinator("card"), member(processes())
    card.answers = False
    with suppress(OSError):
        await join(coordinator, one)
    card.answers = True
    await join(coordinator, one)
    assert (await within(await ask(coordinator, one))).weights == 60


async def test_others_give_way_for_a_waiter_while_the_driver_holds_on_to_the_dead(
    card: FakeCard, processes: Processes
) -> None:
    """The order went to the one that died; the bytes that it was to bring are asked of who is left."""
    card.nbytes = 150
    coordinator, process = Coordinator("card"), processes()
    victim, other = member(process, nbytes=50), member(processes(), nbytes=50)
    waiter = member(processes(), "encode", 100)
    card.listed = {victim.holder.pid: 50}
    epoch = await join(coordinator, victim, other, waiter)
    for one in (victim, other):
        await release(coordinator, await within(await ask(coordinator, one)), 50)
    asked = await ask(coordinator, waiter)
    assert shrink(await within(coordinator.next_command(epoch, victim.holder.id))).weights == 0
    process.kill()
    order = shrink(await within(coordinator.next_command(epoch, other.holder.id)))
    await coordinator.resized(epoch, other.holder.id, order.id, held(0))
    assert (await within(asked)).weights == 100


async def test_a_waiter_whose_process_dies_waits_no_more(card: FakeCard, processes: Processes) -> None:
    coordinator, process = Coordinator("card"), processes()
    first, victim = member(processes()), member(process)
    await join(coordinator, first, victim)
    lease = await within(await ask(coordinator, first))
    asked = await ask(coordinator, victim)
    process.kill()
    with pytest.raises(StageLost, match=str(process.pid)):
        await within(asked)
    await release(coordinator, lease)
    assert await running(coordinator) == []


async def test_a_dead_process_does_not_join(card: FakeCard, processes: Processes) -> None:
    coordinator, process = Coordinator("card"), processes()
    process.kill()
    process.wait()
    with pytest.raises(ProcessLookupError):
        await join(coordinator, member(process))
    assert (await coordinator.report())["stages"] == []


async def test_it_leaves_when_nobody_is_left(
    card: FakeCard, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = asyncio.Event()
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(Coordinator, "_leave", lambda self: left.set())
    coordinator, process, last = Coordinator("card"), processes(), processes()
    await join(coordinator, member(process), member(last))
    process.kill()
    await within(card.looked_at(2))
    assert not left.is_set()
    last.kill()
    await within(left.wait())
    assert (await coordinator.report())["stages"] == []


async def test_it_leaves_when_nobody_ever_came(card: FakeCard, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a restart by Ray when actor and stages died together."""
    left = asyncio.Event()
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(Coordinator, "_leave", lambda self: left.set())
    Coordinator("card")
    await within(left.wait())


async def test_it_stays_when_somebody_comes_in_time(
    card: FakeCard, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer that is overtaken by a join must not fire later, so both are set to the same moment."""
    left = asyncio.Event()
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(Coordinator, "_leave", lambda self: left.set())
    coordinator, process = Coordinator("card"), processes()
    await join(coordinator, member(process))
    process.kill()
    await within(card.looked_at(1))
    while (await coordinator.report())["stages"]:
        await asyncio.sleep(0)
    await join(coordinator, member(processes()))
    with pytest.raises(TimeoutError):
        await within(left.wait(), 0.2)
