"""The coordinator around the ledger, driven in this process: it waits, watches real processes and carries messages.

Nothing sleeps to let something happen. That nothing was granted is read in the report after a call that would have
granted it; timeouts are only ever upper bounds.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from deployments import coordinator as module
from deployments.coordinator import Coordinator, Member, Moved
from lightx2v.core import STAGES, Policy, Progress, StageName
from lightx2v.errors import DeadlineExceeded, OutOfMemory, StageLost, StaleEpoch
from lightx2v.residency.lease import Fetch, Holder, Lease, Shrink
from lightx2v.residency.plan import StageSize

T = TypeVar("T")
Processes = Callable[[], subprocess.Popen[bytes]]

LONG_SECONDS = 60.0
NOTHING = Moved()

pytestmark = pytest.mark.timeout(30)


class FakeCard:
    """The driver of a card of `nbytes`; what it lists is set by the test, and each look at it is counted."""

    def __init__(self, nbytes: int = 100) -> None:
        self.nbytes = nbytes
        self.listed: dict[int, int] = {}
        self.answers = True
        self._looks = asyncio.Queue[None]()

    def total(self) -> int:
        return self.nbytes

    def used(self) -> dict[int, int]:
        self._looks.put_nowait(None)
        if not self.answers:
            raise OSError("the driver does not answer")
        return dict(self.listed)

    async def looked_at(self, times: int) -> None:
        """Returns after so many looks from now."""
        while not self._looks.empty():
            self._looks.get_nowait()
        for _ in range(times):
            await self._looks.get()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> FakeCard:
    """A card of 100 bytes whose coordinators are open from the start."""
    fake = FakeCard()
    monkeypatch.setattr(module, "open_probe", lambda card_id: fake)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    return fake


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Starts processes that do nothing, and ends them."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "600"]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def member(
    process: subprocess.Popen[bytes],
    stage: StageName = "denoise",
    nbytes: int = 60,
    *,
    units: int = 1,
    workspace: int = 0,
    policy: Policy = "whole",
    context: int = 0,
    budget: int | None = None,
    model: str = "klein",
) -> Member:
    """A stage of `nbytes` of weights in so many equal units, one of which fits its slot."""
    unit = nbytes // units
    size = StageSize(stage, (unit,) * units, nbytes - unit * units, workspace, unit, 1)
    return Member(Holder(f"{stage}-{process.pid}", model, stage, process.pid, context, nbytes), size, policy, budget)


async def join(coordinator: Coordinator, *members: Member) -> str:
    """All of them with empty hands; the epoch."""
    return [await coordinator.join(one, 0, None, NOTHING) for one in members][-1]


async def ask(
    coordinator: Coordinator, one: Member, age: float = 0.0, *, workspace: int = 0, seconds: float = LONG_SECONDS
) -> asyncio.Task[Lease]:
    """A call of lease() that has reached the coordinator."""
    epoch = (await coordinator.report())["epoch"]
    asked = asyncio.create_task(coordinator.lease(epoch, one.holder.id, workspace, age, seconds))
    await asyncio.sleep(0)
    return asked


async def release(coordinator: Coordinator, lease: Lease, weights: int = 0, moved: Moved = NOTHING) -> None:
    epoch = (await coordinator.report())["epoch"]
    await coordinator.release(epoch, lease.id, weights, lease.holder, moved)


async def running(coordinator: Coordinator) -> list[int]:
    """The pids that have a lease; kept up to date synchronously, whoever has yet to hear of it."""
    return [stage["pid"] for stage in (await coordinator.report())["stages"] if stage["running"]]


async def granted(coordinator: Coordinator) -> int:
    report = await coordinator.report()
    assert report["granted_bytes"] <= report["peak_granted_bytes"] <= report["budget_bytes"]
    return int(report["granted_bytes"])


async def within(awaitable: Awaitable[T], seconds: float = 4.0) -> T:
    async with asyncio.timeout(seconds):
        return await awaitable


def shrink(order: Shrink | Fetch) -> Shrink:
    assert isinstance(order, Shrink)
    return order


async def test_a_lease_is_granted_and_released(card: FakeCard, processes: Processes) -> None:
    coordinator, one = Coordinator("card"), member(processes())
    epoch = await join(coordinator, one)
    lease = await within(coordinator.lease(epoch, one.holder.id, 30, 0.0, LONG_SECONDS))
    assert (lease.holder, lease.weights, lease.workspace, lease.keep) == (one.holder.id, 60, 30, 60)
    assert (await running(coordinator), await granted(coordinator)) == ([one.holder.pid], 90)
    await release(coordinator, lease, 60, Moved(60, 0))
    assert (await running(coordinator), await granted(coordinator)) == ([], 60)
    assert (await coordinator.report())["h2d_bytes_total"] == 60


async def test_the_progress_of_a_run_is_known_while_it_lasts(card: FakeCard, processes: Processes) -> None:
    coordinator, one, other = Coordinator("card"), member(processes()), member(processes(), "encode", 30)
    epoch = await join(coordinator, one, other)
    lease = await within(await ask(coordinator, one))
    for step in (1, 2):
        await coordinator.advance(epoch, one.holder.id, "a", Progress(step, 4))
    await coordinator.advance(epoch, other.holder.id, "b", Progress(1, 4))
    assert [await coordinator.progress(name) for name in "ab"] == [Progress(2, 4), None], "b does not run"
    await release(coordinator, lease, 60)
    await coordinator.advance(epoch, one.holder.id, "a", Progress(3, 4))
    assert await coordinator.progress("a") is None
    with pytest.raises(StaleEpoch):
        await coordinator.advance("another", one.holder.id, "a", Progress(4, 4))


async def test_the_progress_of_the_dead_is_forgotten(card: FakeCard, processes: Processes) -> None:
    coordinator, process = Coordinator("card"), processes()
    one = member(process)
    epoch = await join(coordinator, one)
    await within(await ask(coordinator, one))
    await coordinator.advance(epoch, one.holder.id, "a", Progress(1, 4))
    process.kill()
    process.wait()

    async def forgotten() -> None:
        while await coordinator.progress("a"):
            await asyncio.sleep(0)

    await within(forgotten())


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
    orders = asyncio.create_task(coordinator.orders(epoch, resting.holder.id))
    await release(coordinator, await within(await ask(coordinator, resting)), 60)
    asked = await ask(coordinator, waiter)
    order = shrink(await within(orders))
    assert (order.holder, order.nbytes) == (resting.holder.id, 20)
    assert (await running(coordinator), await granted(coordinator)) == ([], 60)
    await coordinator.shrunk(epoch, resting.holder.id, 40, order.order)
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
    order = await within(coordinator.orders(epoch, denoise.holder.id))
    assert isinstance(order, Fetch)
    assert (order.holder, order.weights, await granted(coordinator)) == (denoise.holder.id, 40, 80)
    await coordinator.shrunk(epoch, denoise.holder.id, 40, order.order)
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
        order = shrink(await within(coordinator.orders(epoch, resting.holder.id)))
        assert (order.nbytes, asked.done(), await granted(coordinator)) == (60, False, 60)
        await coordinator.shrunk(epoch, resting.holder.id, 0, order.order)
        await release(coordinator, await within(asked), 60)
    report = await coordinator.report()
    assert (report["evictions_total"], report["peak_granted_bytes"]) == (4, 100)


async def test_an_order_waits_for_who_listens_later(card: FakeCard, processes: Processes) -> None:
    coordinator, resting, waiter = Coordinator("card"), member(processes(), "encode"), member(processes())
    epoch = await join(coordinator, resting, waiter)
    await release(coordinator, await within(await ask(coordinator, resting)), 60)
    await ask(coordinator, waiter)
    assert shrink(await within(coordinator.orders(epoch, resting.holder.id))).nbytes == 20


async def test_who_does_not_give_way_is_named_to_the_waiter(
    card: FakeCard, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    coordinator, deaf, waiter = Coordinator("card"), member(processes(), "encode"), member(processes())
    await join(coordinator, deaf, waiter)
    await release(coordinator, await within(await ask(coordinator, deaf)), 60)
    with pytest.raises(OutOfMemory, match=rf"pid {deaf.holder.pid}\) holds 60 and did not give way"):
        await within(await ask(coordinator, waiter))


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
        await release(coordinator, lease, 60, Moved(60, 0))
    held = await granted(coordinator)
    process.kill()
    process.wait()
    asked = await ask(coordinator, waiter)
    await within(card.looked_at(3))
    with pytest.raises(StaleEpoch):
        await coordinator.lease(epoch, victim.holder.id, 0, 0.0, LONG_SECONDS)
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
    assert shrink(await within(coordinator.orders(epoch, victim.holder.id))).nbytes == 50
    process.kill()
    order = await within(coordinator.orders(epoch, other.holder.id))
    await coordinator.shrunk(epoch, other.holder.id, 0, order.order)
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
    "lease": lambda coordinator, epoch, name: coordinator.lease(epoch, name, 0, 0.0, LONG_SECONDS),
    "orders": lambda coordinator, epoch, name: coordinator.orders(epoch, name),
    "shrunk": lambda coordinator, epoch, name: coordinator.shrunk(epoch, name, 0, "order"),
    "release": lambda coordinator, epoch, name: coordinator.release(epoch, "lease", 0, name, NOTHING),
}


@pytest.mark.parametrize("call", FENCED.values(), ids=FENCED)
async def test_another_epoch_is_refused(card: FakeCard, processes: Processes, call: Call) -> None:
    coordinator, one = Coordinator("card"), member(processes())
    await join(coordinator, one)
    before = await coordinator.report()
    with pytest.raises(StaleEpoch):
        await within(call(coordinator, "another", one.holder.id))
    assert await coordinator.report() == before


@pytest.mark.parametrize("method", ["lease", "orders", "shrunk"])
async def test_who_has_not_joined_is_refused(card: FakeCard, processes: Processes, method: str) -> None:
    coordinator, one = Coordinator("card"), member(processes())
    epoch = await join(coordinator, one)
    with pytest.raises(StaleEpoch):
        await within(FENCED[method](coordinator, epoch, "nobody"))


async def test_epochs_differ_and_joining_twice_changes_nothing(card: FakeCard, processes: Processes) -> None:
    coordinator, one = Coordinator("card"), member(processes())
    epoch = await join(coordinator, one)
    lease = await within(await ask(coordinator, one))
    assert await coordinator.join(one, 0, None, NOTHING) == epoch
    assert (await running(coordinator), await granted(coordinator)) == ([one.holder.pid], 60)
    await release(coordinator, lease)
    assert await join(Coordinator("card"), one) != epoch


@pytest.mark.parametrize("cap", ["card", "budget"])
async def test_a_budget_too_small_for_auto_is_told(card: FakeCard, processes: Processes, cap: str) -> None:
    """Two units of 30 and a workspace of 20: one unit in the slot at a time takes 50."""
    room = 49 if cap == "card" else 100
    card.nbytes, budget = room, 49 if cap == "budget" else None
    one = member(processes(), units=2, workspace=20, policy="auto", budget=budget)
    coordinator = Coordinator("card")
    await join(coordinator, one)
    with pytest.raises(OutOfMemory, match="denoise needs 50 bytes with every unit streamed; the budget is 49"):
        await coordinator.ready("klein")
    with pytest.raises(OutOfMemory, match="50 bytes"):
        await within(await ask(coordinator, one, workspace=20))
    assert await coordinator.room("klein", "denoise") == 1
    (stage,) = (await coordinator.report())["stages"]
    assert stage["planned_bytes"] is None


async def test_a_budget_just_large_enough_for_auto(card: FakeCard, processes: Processes) -> None:
    card.nbytes = 50
    coordinator, one = Coordinator("card"), member(processes(), units=2, workspace=20, policy="auto")
    await join(coordinator, one)
    await coordinator.ready("klein")
    lease = await within(await ask(coordinator, one, workspace=20))
    assert (lease.weights, lease.workspace) == (0, 50)
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
        assert (lease.weights, lease.workspace) == (20 if policy == "auto" else 0, 80)
    complete: tuple[Policy, ...] = ("whole", "model")
    for policy in complete:
        coordinator, one = Coordinator("card"), member(processes(), units=2, workspace=20, policy=policy)
        await join(coordinator, one)
        with pytest.raises(OutOfMemory, match="at least 110"):
            await within(await ask(coordinator, one, workspace=50))


async def test_a_model_that_does_not_fit_leaves_others_in_peace(card: FakeCard, processes: Processes) -> None:
    coordinator = Coordinator("card")
    large, small = member(processes(), nbytes=200, policy="auto", model="large"), member(processes(), nbytes=60)
    await join(coordinator, large, small)
    with pytest.raises(OutOfMemory):
        await coordinator.ready("large")
    await coordinator.ready("klein")
    assert (await within(await ask(coordinator, small))).weights == 60


async def test_a_whole_model_that_does_not_fit_is_told(card: FakeCard, processes: Processes) -> None:
    coordinator, one = Coordinator("card"), member(processes(), nbytes=200)
    await join(coordinator, one)
    with pytest.raises(OutOfMemory, match=r"needs 200 bytes .* the budget is 100"):
        await within(await ask(coordinator, one))
    with pytest.raises(OutOfMemory, match="200 bytes"):
        await coordinator.ready("klein")
    assert (await coordinator.report())["waiting"] == 0


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
    held = Lease("old:1", runner.holder.id, 60, 10, 0)
    await coordinator.join(runner, 60, held, NOTHING)
    assert (await running(coordinator), await granted(coordinator)) == ([runner.holder.pid], 70)
    lease = await within(for_small)
    assert time.monotonic() - began >= settle
    assert await granted(coordinator) == 100
    await release(coordinator, lease)
    assert (await running(coordinator), await granted(coordinator)) == ([runner.holder.pid], 70)
    await release(coordinator, held)
    assert (await within(for_large)).weights == 60
    assert await granted(coordinator) == 60


async def test_who_rejoins_with_weights_is_asked_for_them(
    card: FakeCard, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.1)
    coordinator, resting, waiter = Coordinator("card"), member(processes(), "encode"), member(processes())
    epoch = await join(coordinator, waiter)
    asked = await ask(coordinator, waiter)
    await coordinator.join(resting, 60, None, NOTHING)
    order = shrink(await within(coordinator.orders(epoch, resting.holder.id)))
    assert (order.nbytes, await granted(coordinator)) == (20, 60)
    await coordinator.shrunk(epoch, resting.holder.id, 40, order.order)
    await within(asked)


async def test_the_report_has_what_the_api_documents(card: FakeCard, processes: Processes) -> None:
    coordinator = Coordinator("GPU-1")
    encode, denoise = member(processes(), "encode", 40, context=5), member(processes(), context=5)
    await join(coordinator, encode, denoise)
    await release(coordinator, await within(await ask(coordinator, encode)), 40, Moved(40, 0))
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


async def test_room_is_for_replicas_beside_one_of_each_other_stage(card: FakeCard, processes: Processes) -> None:
    coordinator = Coordinator("card")
    assert await coordinator.room("klein", "denoise") == 1, "nobody is there yet"
    await join(
        coordinator,
        member(processes(), "encode", 20, context=5),
        member(processes(), "decode", 10, context=5),
        member(processes(), "denoise", 10, context=5, workspace=5),
    )
    assert await coordinator.room("klein", "denoise") == 3, "40 for the others, 20 each"
    assert await coordinator.room("klein", "encode") == 2, "30 for the others, 25 each"
    assert await coordinator.room("another", "denoise") == 1


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


async def test_under_load_the_budget_holds_and_nobody_starves(card: FakeCard, processes: Processes) -> None:
    """Four stages that fit two at a time, at best; every fourth request is cancelled wherever it is."""
    coordinator, chance = Coordinator("card"), random.Random(0)
    members = [member(processes(), stage, 40, workspace=10) for stage in STAGES]
    epoch = await join(coordinator, *members)
    held = {one.holder.id: 0 for one in members}

    async def obey(name: str) -> None:
        while True:
            order = shrink(await coordinator.orders(epoch, name))
            held[name] = max(0, held[name] - order.nbytes)
            await coordinator.shrunk(epoch, name, held[name], order.order)

    async def use(one: Member, age: float) -> None:
        lease = await coordinator.lease(epoch, one.holder.id, 10, age, LONG_SECONDS)
        held[one.holder.id] = lease.weights
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
    assert await granted(coordinator) == sum(held.values())
    assert (await coordinator.report())["shrinks_total"] > 10
    for task in listening:
        task.cancel()
