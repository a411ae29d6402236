"""A stage's side of the lease, against real coordinators that are reached as Ray's actors are, and die as they do."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from deployments.card import coordinator as module
from deployments.card.coordinator import Coordinator
from deployments.card.members import Member
from deployments.card.protocol import RemoteCoordinator
from deployments.card.transfer import TransferBytes
from deployments.stage.coordinator_client import CoordinatorClient
from lightx2v.errors import LightError, OutOfMemory
from lightx2v.residency.gate import Gate
from lightx2v.residency.lease import Holder, Lease, Room, Work
from lightx2v.residency.plan import StageSize
from lightx2v.types import Policy, Progress, StageName
from tests.unit.card.members import FakeCard, granted, running, within

WORK = Work(1, 0.0, 0.0)
ASK = Room(0, 0), WORK, 60.0

pytestmark = pytest.mark.timeout(30)


@dataclass
class Remote:
    """An actor's handle: `handle.lease.remote(...)`.

    As with Ray, a call runs to its end although its caller goes away, an error arrives as a RayTaskError that is also
    of its cause's class, and calls that are under way when the actor dies fail with it.
    """

    coordinator: Coordinator
    calls: list[str] = field(default_factory=list)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    """A call of this name reaches the coordinator, and its reply waits for the event."""
    lost: list[str] = field(default_factory=list)
    """A call of this name is carried out, and the connection breaks before its reply: once for each entry."""
    dead: asyncio.Event = field(default_factory=asyncio.Event)

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)

    async def call(self, name: str, *args: Any) -> Any:
        self.calls.append(name)
        work = asyncio.create_task(self._run(name, *args))
        death = asyncio.create_task(self.dead.wait())
        try:
            await asyncio.wait([work, death], return_when=asyncio.FIRST_COMPLETED)
        finally:
            death.cancel()
        if self.dead.is_set():
            work.cancel()
            raise ActorDiedError
        return work.result()

    async def _run(self, name: str, *args: Any) -> Any:
        try:
            result = await getattr(self.coordinator, name)(*args)
        except LightError as error:
            raise RayTaskError(name, "traceback", error, "proctitle", 1, "ip").as_instanceof_cause() from None
        if name in self.lost:
            self.lost.remove(name)
            raise ActorUnavailableError("the connection broke", None)
        if name in self.held:
            await self.held[name].wait()
        return result


@dataclass(frozen=True)
class Method:
    actor: Remote
    name: str

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        """Sent at once, whether or not it is awaited; cancelling what is returned does not cancel the call."""
        return asyncio.shield(asyncio.ensure_future(self.actor.call(self.name, *args)))


class Card:
    """The coordinator of a card, and its successors."""

    def __init__(self) -> None:
        self.actor = Remote(Coordinator("card"))

    def find(self) -> RemoteCoordinator:
        return RemoteCoordinator(self.actor)

    def die(self) -> Remote:
        """The successor, which is there at once and empty."""
        dead, self.actor = self.actor, Remote(Coordinator("card"))
        dead.dead.set()
        return self.actor


class Stage:
    """A stage process of `nbytes` of weights: what a StageServer does with its lessee."""

    def __init__(self, card: Card, name: StageName, nbytes: int = 60, policy: Policy = "whole") -> None:
        holder = Holder(name, "klein", name, os.getpid(), 0, nbytes)
        size = StageSize(name, (nbytes,), 0, 0, nbytes, 1)
        self.stage, self.resident = name, 0
        self.drops: list[int] = []
        member = Member(holder, size, policy, None)
        self.recalled = asyncio.Event()
        self.client = CoordinatorClient(member, card.find, self, self.recalled.set)

    async def drop(self, limit: int) -> int:
        self.drops.append(limit)
        self.resident = min(self.resident, limit)
        return self.resident

    async def fetch(self, limit: int) -> int:
        self.resident = max(self.resident, limit)
        return self.resident

    def transferred(self) -> TransferBytes:
        return TransferBytes(7, 0)

    async def run(self, until: asyncio.Event | None = None, began: asyncio.Event | None = None) -> Lease:
        async with self.client.lease(*ASK) as lease:
            try:
                if began is not None:
                    began.set()
                if until is not None:
                    await until.wait()
                return lease
            finally:
                self.resident = lease.keep
                self.client.holds(self.resident)


@pytest.fixture(autouse=True)
def fake_card(card: FakeCard) -> FakeCard:
    return card


async def contended(card: Card, waiter: Stage) -> tuple[asyncio.Event, asyncio.Task[Lease], asyncio.Task[Lease]]:
    """A stage runs until the event is set, and `waiter` waits for its memory; both runs."""
    runner = Stage(card, "denoise", policy="model")
    for stage in (runner, waiter):
        await stage.client.start()
    until, began = asyncio.Event(), asyncio.Event()
    run = asyncio.create_task(runner.run(until, began))
    await within(began.wait())
    waiting = asyncio.create_task(waiter.run())
    while (await card.actor.coordinator.report())["waiting"] == 0:
        await asyncio.sleep(0)
    return until, run, waiting


async def resident(actor: Remote) -> dict[str, int]:
    """What the coordinator believes of each stage."""
    return {stage["stage"]: stage["resident_bytes"] for stage in (await actor.coordinator.report())["stages"]}


async def settled(actor: Remote, expected: dict[str, int]) -> None:
    """Returns when the coordinator believes that."""
    async with asyncio.timeout(20):
        while await resident(actor) != expected:
            await asyncio.sleep(0)


async def told(actor: Remote, expected: Progress, request_id: str = "a") -> None:
    """Returns when the coordinator knows of that."""
    async with asyncio.timeout(20):
        while await actor.coordinator.progress(request_id) != expected:
            await asyncio.sleep(0)


async def rests(actor: Remote) -> bool:
    return await running(actor.coordinator) == [] and (await actor.coordinator.report())["waiting"] == 0


async def test_a_lease_ends_with_its_block() -> None:
    card = Card()
    stage = Stage(card, "denoise")
    await stage.client.start()
    lease = await within(stage.run())
    assert (lease.weights, lease.keep) == (60, 60)
    assert await rests(card.actor)
    assert await resident(card.actor) == {"denoise": 60}
    assert (await card.actor.coordinator.report())["h2d_bytes_total"] == 7


async def test_who_runs_next_fetches_and_says_what_it_holds() -> None:
    card = Card()
    encode, denoise = Stage(card, "encode", 30, policy="auto"), Stage(card, "denoise", 60, policy="auto")
    for stage in (encode, denoise):
        await stage.client.start()
    await within(encode.run())
    await settled(card.actor, {"encode": 30, "denoise": 60})
    assert (denoise.resident, denoise.drops) == (60, [])
    assert (await within(denoise.run())).weights == 60


async def test_the_latest_news_is_told_one_message_at_a_time() -> None:
    card = Card()
    stage = Stage(card, "denoise")
    await stage.client.start()
    async with stage.client.lease(*ASK):
        for step in range(50):
            stage.client.tell(WORK, {"a": Progress(step, 50)})
        await told(card.actor, Progress(49, 50))
        assert card.actor.calls.count("tell") == 1
        reply = card.actor.held["tell"] = asyncio.Event()
        for step in (1, 2, 3):
            stage.client.tell(WORK, {"a": Progress(50, 50), "b": Progress(step, 4)})
            for _ in range(10):
                await asyncio.sleep(0)
        assert card.actor.calls.count("tell") == 2, "the first has not been answered"
        await told(card.actor, Progress(1, 4), "b")
        reply.set()
        await told(card.actor, Progress(3, 4), "b")
        await told(card.actor, Progress(50, 50), "a")
        assert card.actor.calls.count("tell") == 3


async def test_what_the_process_takes_is_told_when_it_changes_and_to_a_successor() -> None:
    card = Card()
    stage = Stage(card, "denoise")
    await stage.client.start()
    for context in (5, 5, 7):
        await within(stage.client.weigh(context))
    assert card.actor.calls.count("update") == 2
    assert await granted(card.actor.coordinator) == 7
    successor = card.die()
    await settled(successor, {"denoise": 0})
    assert await granted(successor.coordinator) == 7


async def test_progress_is_told_to_a_successor() -> None:
    card = Card()
    stage = Stage(card, "denoise")
    await stage.client.start()
    async with stage.client.lease(*ASK):
        successor = card.die()
        stage.client.tell(WORK, {"a": Progress(1, 4)})
        await told(successor, Progress(1, 4))


async def test_progress_after_the_run_is_noted_for_nobody() -> None:
    card = Card()
    stage = Stage(card, "denoise")
    await stage.client.start()
    async with stage.client.lease(*ASK):
        stage.client.tell(WORK, {"a": Progress(1, 4)})
    stage.client.tell(WORK, {"a": Progress(2, 4)})
    for _ in range(10):
        await asyncio.sleep(0)
    assert await card.actor.coordinator.progress("a") is None


async def test_a_failing_run_leaves_nothing_leased() -> None:
    card = Card()
    stage = Stage(card, "denoise", policy="model")
    await stage.client.start()

    async def fail() -> None:
        async with stage.client.lease(*ASK):
            stage.client.holds(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await within(fail())
    assert await rests(card.actor)
    assert await granted(card.actor.coordinator) == 0


async def test_who_does_not_say_what_it_left_is_taken_to_have_left_all() -> None:
    card = Card()
    stage = Stage(card, "denoise")
    await stage.client.start()
    async with stage.client.lease(*ASK):
        pass
    assert await resident(card.actor) == {"denoise": 60}


async def test_it_gives_way_when_it_is_told() -> None:
    card = Card()
    encode, denoise = Stage(card, "encode"), Stage(card, "denoise")
    obedience = [await stage.client.start() for stage in (encode, denoise)]
    for stage in (encode, denoise, encode, denoise):
        await within(stage.run())
    assert (encode.drops, denoise.drops) == ([40, 40], [40])
    assert await resident(card.actor) == {"encode": 40, "denoise": 60}
    assert not any(task.done() for task in obedience)


@pytest.mark.parametrize("lost", ["next_command", "resized"])
async def test_it_gives_way_and_fetches_although_a_reply_is_lost(lost: str) -> None:
    card = Card()
    encode, denoise = Stage(card, "encode", 60, policy="auto"), Stage(card, "denoise", 60, policy="auto")
    for stage in (encode, denoise):
        await stage.client.start()
    for stage in (encode, denoise, encode, denoise):
        card.actor.lost.append(lost)
        await within(stage.run())
    async with asyncio.timeout(20):
        while card.actor.lost or await resident(card.actor) != {one.stage: one.resident for one in (encode, denoise)}:
            await asyncio.sleep(0)
    assert encode.resident + denoise.resident <= 100


async def test_a_recall_is_passed_on_and_asked_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATE", Gate(age_bound=0.0))
    card = Card()
    encode, denoise = Stage(card, "encode"), Stage(card, "denoise")
    for stage in (encode, denoise):
        await stage.client.start()
    began = asyncio.Event()
    run = asyncio.create_task(denoise.run(denoise.recalled, began))
    await within(began.wait())
    await within(encode.run())
    await within(run)
    assert denoise.recalled.is_set()
    assert not encode.recalled.is_set()
    assert card.actor.calls.count("next_command") <= 6


async def test_a_recall_that_comes_before_its_lease_is_passed_on_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply with the lease is late."""
    monkeypatch.setattr(module, "GATE", Gate(age_bound=0.0))
    card = Card()
    encode, denoise = Stage(card, "encode"), Stage(card, "denoise")
    for stage in (encode, denoise):
        await stage.client.start()
    reply = card.actor.held["lease"] = asyncio.Event()
    run = asyncio.create_task(denoise.run(denoise.recalled))
    while await running(card.actor.coordinator) == []:
        await asyncio.sleep(0)
    waiting = asyncio.create_task(encode.run())
    while (await card.actor.coordinator.report())["recalls_total"] == 0:
        await asyncio.sleep(0)
    reply.set()
    await within(run)
    assert denoise.recalled.is_set()
    await within(waiting)


async def test_a_stage_that_cannot_drop_no_longer_obeys() -> None:
    """Serve restarts a stage whose obedience has ended: see StageServer.check_health."""
    card = Card()
    encode, denoise = Stage(card, "encode"), Stage(card, "denoise")
    encode.drop = Stage(card, "encode").client.ready  # type: ignore[method-assign, assignment]
    obedience, _ = await encode.client.start(), await denoise.client.start()
    await within(encode.run())
    waiting = asyncio.create_task(denoise.run())
    with pytest.raises(TypeError):
        await within(obedience)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_errors_of_the_coordinator_arrive_as_they_were_raised(fake_card: FakeCard) -> None:
    fake_card.nbytes = 50
    stage = Stage(Card(), "denoise")
    await stage.client.start()
    with pytest.raises(OutOfMemory, match="needs 60 bytes") as caught:
        await within(stage.run())
    assert type(caught.value) is OutOfMemory


async def test_who_rests_joins_the_successor_with_its_weights() -> None:
    card = Card()
    stage = Stage(card, "denoise")
    obedience = await stage.client.start()
    await within(stage.run())
    successor = card.die()
    await settled(successor, {"denoise": 60})
    await within(stage.run())
    assert await rests(successor)
    assert not obedience.done()
    assert successor.calls.count("join") == 1, "every task noticed, one joined"


async def test_who_runs_joins_the_successor_with_its_lease() -> None:
    card = Card()
    runner, other = Stage(card, "denoise", policy="model"), Stage(card, "encode", policy="model")
    for stage in (runner, other):
        await stage.client.start()
    until, began = asyncio.Event(), asyncio.Event()
    run = asyncio.create_task(runner.run(until, began))
    await within(began.wait())
    successor = card.die()
    await settled(successor, {"denoise": 60, "encode": 0})
    waiting = asyncio.create_task(other.run())
    while (await successor.coordinator.report())["waiting"] == 0:
        await asyncio.sleep(0)
    assert await running(successor.coordinator) == [os.getpid()]
    assert await granted(successor.coordinator) == 60
    until.set()
    await within(run)
    assert (await within(waiting)).holder == "encode"
    assert await rests(successor)
    assert await granted(successor.coordinator) == 0


async def test_who_waits_waits_on_at_the_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card()
    waiter = Stage(card, "encode", policy="model")
    until, run, waiting = await contended(card, waiter)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.1)
    successor = card.die()
    await settled(successor, {"denoise": 60, "encode": 0})
    while (await successor.coordinator.report())["waiting"] == 0:
        await asyncio.sleep(0)
    until.set()
    await within(run)
    assert (await within(waiting)).id.startswith((await successor.coordinator.report())["epoch"])
    assert await rests(successor)


async def test_a_coordinator_that_dies_while_it_is_joined() -> None:
    card = Card()
    first, stage = card.actor, Stage(card, "denoise")
    first.held["join"] = asyncio.Event()
    starting = asyncio.create_task(stage.client.start())
    while "join" not in first.calls:
        await asyncio.sleep(0)
    successor = card.die()
    await within(starting)
    await within(stage.run())
    assert await resident(successor) == {"denoise": 60}


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_run_that_ends_while_the_successor_is_joined_is_released(cancelled: bool) -> None:
    """Its lease is on its way to the successor already, so the successor has to hear of the end as well."""
    card = Card()
    stage = Stage(card, "denoise", policy="model")
    await stage.client.start()
    until, began = asyncio.Event(), asyncio.Event()
    run = asyncio.create_task(stage.run(until, began))
    await within(began.wait())
    successor = card.die()
    successor.held["join"] = asyncio.Event()
    await settled(successor, {"denoise": 60})
    until.set()
    while "release" not in successor.calls:
        await asyncio.sleep(0)
    if cancelled:
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(run)
    successor.held["join"].set()
    if not cancelled:
        await within(run)
    await settled(successor, {"denoise": 0})
    assert await rests(successor)
    await within(stage.run())


async def test_a_release_that_dies_with_its_coordinator_is_known_to_the_successor() -> None:
    card = Card()
    first, stage = card.actor, Stage(card, "denoise")
    await stage.client.start()
    first.held["release"] = asyncio.Event()
    run = asyncio.create_task(stage.run())
    while "release" not in first.calls:
        await asyncio.sleep(0)
    successor = card.die()
    await within(run)
    assert await rests(successor)
    assert await resident(successor) == {"denoise": 60}


async def test_a_waiter_that_is_cancelled_abandons() -> None:
    card = Card()
    waiter = Stage(card, "encode", policy="model")
    until, run, waiting = await contended(card, waiter)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(waiting)
    assert (await card.actor.coordinator.report())["waiting"] == 0
    until.set()
    await within(run)
    assert await rests(card.actor)
    await within(waiter.run())


async def test_a_waiter_that_is_cancelled_before_it_hears_of_its_grant_abandons() -> None:
    card = Card()
    stage = Stage(card, "denoise", policy="model")
    await stage.client.start()
    card.actor.held["lease"] = asyncio.Event()
    waiting = asyncio.create_task(stage.run())
    while not await running(card.actor.coordinator):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(waiting)
    assert await rests(card.actor)
    assert await granted(card.actor.coordinator) == 0
    del card.actor.held["lease"]
    await within(stage.run())


@pytest.mark.parametrize("times", [1, 2])
async def test_a_release_outlives_the_task_that_it_was_for(times: int) -> None:
    """Cancelled in its run, and again in the release that follows."""
    card = Card()
    actor, stage = card.actor, Stage(card, "denoise")
    await stage.client.start()
    began, actor.held["release"] = asyncio.Event(), asyncio.Event()
    run = asyncio.create_task(stage.run(asyncio.Event(), began))
    await within(began.wait())
    for _ in range(times):
        run.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
    actor.held["release"].set()
    with pytest.raises(asyncio.CancelledError):
        await within(run)
    await settled(actor, {"denoise": 60})
    assert actor.calls.count("release") == 1
    assert await rests(actor)
    with suppress(asyncio.CancelledError):
        await within(stage.run())
    assert actor.calls.count("release") == 2


async def test_room_and_ready_are_answered_by_the_successor() -> None:
    card = Card()
    stage = Stage(card, "denoise")
    await stage.client.start()
    assert await within(stage.client.max_replicas()) == 1
    card.die()
    assert await within(stage.client.max_replicas()) == 1
    await within(stage.client.ready())
