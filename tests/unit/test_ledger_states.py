"""The ledger under a state machine of processes that ask, run, give way, ignore, die and vanish, and of restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lightx2v.errors import DeadlineExceeded, OutOfMemory, StaleEpoch
from lightx2v.residency.account import Account
from lightx2v.residency.gate import Gate
from lightx2v.residency.lease import Event, Fetch, Granted, Holder, Lease, Need, Recall, Shrink, Wish, Work
from lightx2v.residency.ledger import Ledger
from lightx2v.types import STAGES, StageName


@dataclass
class Process:
    """A simulated holder, with what it really has on the card."""

    holder: Holder
    weights: int = 0
    lease: Lease | None = None
    ticket: str | None = None
    wants: Need | None = None
    priority: int = 0
    told: int = 0
    """The jobs of which it said last that they could run together."""
    recalled: bool = False
    order: Shrink | Fetch | None = None
    alive: bool = True

    @property
    def nbytes(self) -> int:
        return self.holder.context + self.weights + (self.lease.extra_bytes if self.lease else 0)

    def idle(self) -> bool:
        return self.alive and self.lease is None

    def running(self) -> bool:
        return self.alive and self.lease is not None

    def called_back(self) -> bool:
        return self.alive and self.recalled

    def waiting(self) -> bool:
        return self.ticket is not None

    def silent(self) -> bool:
        return self.alive and not self.waiting()

    def ordered(self) -> bool:
        return self.order is not None

    def dead(self) -> bool:
        return not self.alive


@dataclass
class Waiter:
    process: Process
    since: float
    deadline: float

    @property
    def order(self) -> tuple[int, float]:
        return -self.process.priority, self.since

    def is_overdue(self, now: float) -> bool:
        return now >= self.since + min(GATE.age_bound, (self.deadline - self.since) / 2) and self.process.lease is None


def ahead(account: Account) -> int:
    """What it was to fetch for its next run alone."""
    return max(0, account.weights - account.wish.keep) if account.wish else 0


NOTHING = Need(0, 0, 0, 0, 0)
GATE = Gate(age_bound=4.0, link=100.0)
WORKS = st.builds(Work, st.integers(0, 4), st.floats(0, 10), st.integers(0, 5).map(float), st.integers(0, 1))

Act = Callable[["Card", Process, st.DataObject], None]


def on(fitting: Callable[[Process], bool]) -> Callable[[Act], Callable[[Card], None]]:
    """A rule on one of the processes that fit; never tried when there is none."""

    def decorate(act: Act) -> Callable[[Card], None]:
        def step(self: Card, data: st.DataObject) -> None:
            act(self, data.draw(st.sampled_from([process for process in self.processes if fitting(process)])), data)
            self.drive()

        step.__name__ = act.__name__
        return precondition(lambda self: any(map(fitting, self.processes)))(rule(data=st.data())(step))

    return decorate


class Card(RuleBasedStateMachine):
    """Processes that ask, run, give way, ignore, die and vanish, while ledgers come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        self.waiters: dict[str, Waiter] = {}
        self.now = 0.0
        self.serial = 0
        self.unseen: list[Process] = []
        """Died before the present ledger began: their bytes are other users' bytes to it."""

    @initialize(size=st.integers(60, 140), stages=st.permutations(STAGES))
    def begin(self, size: int, stages: list[StageName]) -> None:
        self.size = size
        self.before = 0
        self.ledger = Ledger(size, "e0", gate=GATE)
        for stage in stages:
            self.start("klein", stage, 2, 50)

    # What the driver of a ledger does after every change.
    def drive(self, revealing: bool = False) -> None:
        ceiling = max(self.ledger.budget, self.before)
        self.begun = {ticket.id for ticket in self.ledger.tickets.values() if ticket.is_begun}
        for event in self.ledger.advance(self.now):
            self.apply(event)
        if not revealing:
            assert self.ledger.granted <= ceiling
        self.before = self.ledger.granted
        following = self.ledger.next_deadline()
        assert following is None or following > self.now

    def apply(self, event: Event) -> None:
        if isinstance(event, Shrink | Fetch):
            self.order(event)
            return
        if isinstance(event, Recall):
            self.call_back(event)
            return
        waiter = self.waiters.pop(event.ticket)
        process, process.ticket = waiter.process, None
        wants, process.wants = process.wants, None
        assert wants is not None
        if isinstance(event, Granted):
            assert self.now >= self.ledger.opens_at
            if event.ticket not in self.begun:
                overdue = (one for one in self.waiters.values() if one.is_overdue(self.now))
                assert all(waiter.order <= one.order for one in overdue), "those that waited too long, oldest first"
            assert process.alive
            assert process.lease is None
            assert process.weights <= event.lease.weights
            assert wants.floor <= event.lease.weights <= wants.weights
            streams = event.lease.weights < process.holder.reachable
            assert event.lease.extra_bytes == wants.activation_bytes + (wants.slot_bytes if streams else 0)
            process.weights, process.lease = event.lease.weights, event.lease
            if isinstance(process.order, Fetch):
                process.order = None  # it has fetched before it runs: one thing at a time
        elif isinstance(event.error, DeadlineExceeded):
            assert waiter.deadline <= self.now
        else:
            self.refused(wants, process)

    def call_back(self, event: Recall) -> None:
        process = next(process for process in self.processes if process.holder.id == event.holder)
        assert process.alive
        assert process.lease is not None
        assert process.lease.id == event.lease
        assert self.waiters or process.lease.width < process.told
        assert not process.recalled, "once for each lease"
        process.recalled = True

    def order(self, event: Shrink | Fetch) -> None:
        process = next(process for process in self.processes if process.holder.id == event.holder)
        account = self.ledger.holders[event.holder]
        assert process.alive
        assert process.lease is None
        if isinstance(event, Shrink):
            assert 0 <= event.weights < account.weights
        else:
            assert not self.waiters
            assert account.wish is not None
            assert process.weights < event.weights <= account.wish.weights
            returning = sum(ahead(other) for other in self.ledger.holders.values() if other is not account)
            assert self.ledger.free + returning >= account.wish.extra_bytes, (
                "its run is not to wait for what it fetched"
            )
        process.order = event

    def refused(self, wants: Need, process: Process) -> None:
        """Only who cannot fit beside the contexts, or needs bytes of one that was given its time."""
        unresponsive = any(account.is_unresponsive for account in self.ledger.holders.values())
        contexts = sum(a.holder.context for a in self.ledger.holders.values() if not a.dying)
        fits = wants.fit(self.ledger.budget - contexts, process.holder.reachable) is not None
        assert unresponsive or not fits

    @precondition(lambda self: sum(process.alive for process in self.processes) < 6)
    @rule(
        model=st.sampled_from(["klein", "wan"]),
        stage=st.sampled_from(STAGES),
        context=st.integers(0, 6),
        reachable=st.integers(0, 80),
    )
    def start(self, model: str, stage: StageName, context: int, reachable: int) -> None:
        self.serial += 1
        process = Process(Holder(f"p{self.serial}", model, stage, self.serial, context, reachable))
        self.processes.append(process)
        self.ledger.join(process.holder)
        self.ledger.join(process.holder)
        self.drive(revealing=True)

    @on(Process.silent)
    def ask(self, process: Process, data: st.DataObject) -> None:
        self.ask_for(process, data)

    def ask_for(self, process: Process, data: st.DataObject) -> None:
        reachable = process.holder.reachable
        weights = data.draw(st.sampled_from([reachable, reachable // 2]) | st.integers(0, reachable))
        part = st.sampled_from([0, weights]) | st.integers(0, weights)
        wants = Need(weights, data.draw(part), data.draw(st.integers(0, 20)), data.draw(part), data.draw(part))
        deadline = self.now + data.draw(st.integers(1, 40))
        work = data.draw(WORKS)
        try:
            process.ticket = self.ledger.request(process.holder.id, wants, work, deadline, self.ledger.epoch)
        except OutOfMemory:
            self.refused(wants, process)
            return
        process.wants, process.priority = wants, work.priority
        self.waiters[process.ticket] = Waiter(process, self.now, deadline)

    @on(lambda process: process.alive)
    def tell(self, process: Process, data: st.DataObject) -> None:
        work, width = data.draw(WORKS), data.draw(st.integers(1, 4))
        wants = replace(process.wants or NOTHING, width=width)
        process.priority, process.told = work.priority, min(work.jobs, width)
        self.ledger.waits(process.holder.id, work, self.ledger.epoch, wants)

    @on(Process.called_back)
    def come_back(self, process: Process, data: st.DataObject) -> None:
        """It ends its lease, and asks for another one at once."""
        assert process.lease is not None
        assert self.ledger.holders[process.holder.id].command == Recall(process.holder.id, process.lease.id)
        self.end_run(process, data.draw(st.integers(0, 3)))
        if process.silent():
            self.ask_for(process, data)

    @on(Process.running)
    def finish(self, process: Process, data: st.DataObject) -> None:
        self.end_run(process, data.draw(st.integers(0, 3)))

    def end_run(self, process: Process, loss: int) -> None:
        """It keeps what it was to keep, or less by `loss`."""
        assert process.lease is not None
        lease, process.lease, process.recalled = process.lease, None, False
        process.weights = max(0, lease.keep - loss)
        self.ledger.release(lease.id, process.weights, self.ledger.epoch)

    @on(Process.ordered)
    def give_way(self, process: Process, data: st.DataObject) -> None:
        self.answer(process, data.draw(st.integers(0, 10)))

    def answer(self, process: Process, more: int) -> None:
        order = self.carry_out(process, more)
        process.order = None
        self.ledger.resized(process.holder.id, process.weights, self.ledger.epoch, order.id)

    def carry_out(self, process: Process, more: int) -> Shrink | Fetch:
        """It drops or fetches what it was told, less `more` to make whole units. Once it runs again, nothing."""
        order = process.order
        assert order is not None
        if isinstance(order, Fetch):
            process.weights = max(process.weights, order.weights - more)
        elif process.lease is None:
            process.weights = max(0, min(process.weights, order.weights) - more)
        return order

    @on(Process.ordered)
    def lose(self, process: Process, data: st.DataObject) -> None:
        """The reply with its command is lost; or it has carried it out, and its answer is lost."""
        if data.draw(st.booleans()):
            self.carry_out(process, 0)
        process.order = None

    @on(Process.idle)
    def ask_again(self, process: Process, data: st.DataObject) -> None:
        """It gets the command that it has not answered."""
        command = self.ledger.holders[process.holder.id].command
        assert not isinstance(command, Recall)
        process.order = command

    @on(lambda process: process.alive)
    def wish(self, process: Process, data: st.DataObject) -> None:
        weights, beside = data.draw(st.integers(0, process.holder.reachable)), data.draw(st.integers(0, 20))
        self.ledger.expect(process.holder.id, Wish(weights, beside, data.draw(st.integers(0, weights))))

    @on(lambda process: process.alive)
    def weigh(self, process: Process, data: st.DataObject) -> None:
        process.holder = replace(process.holder, context=data.draw(st.integers(0, 6)))
        self.ledger.weigh(process.holder)
        self.drive(revealing=True)

    @on(Process.idle)
    def drop_unasked(self, process: Process, data: st.DataObject) -> None:
        process.weights = data.draw(st.integers(0, process.weights))
        self.ledger.resized(process.holder.id, process.weights, self.ledger.epoch)

    @on(Process.waiting)
    def go_away(self, process: Process, data: st.DataObject) -> None:
        assert process.ticket is not None
        self.ledger.cancel(process.ticket, self.ledger.epoch)
        del self.waiters[process.ticket]
        process.ticket = process.wants = None

    @on(lambda process: process.alive)
    def die(self, process: Process, data: st.DataObject) -> None:
        granted = self.ledger.granted
        assert self.ledger.dead(process.holder.id) == [process.ticket] * process.waiting()
        assert self.ledger.granted == granted
        self.waiters.pop(process.ticket or "", None)
        process.alive, process.ticket, process.wants, process.order = False, None, None, None
        process.recalled = False

    @on(Process.dead)
    def vanish(self, process: Process, data: st.DataObject) -> None:
        self.bury(process)

    def bury(self, process: Process) -> None:
        self.processes.remove(process)
        self.ledger.gone(process.holder.id)
        if process in self.unseen:
            self.unseen.remove(process)
            self.ledger.resize(self.ledger.budget + process.nbytes)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.drive()

    @rule(change=st.integers(-20, 20))
    def share_the_card(self, change: int) -> None:
        self.ledger.resize(max(40, self.ledger.budget + change))
        self.drive(revealing=True)

    @rule()
    def restart(self) -> None:
        old = self.ledger
        self.unseen = [process for process in self.processes if not process.alive]
        budget = self.size - sum(process.nbytes for process in self.unseen)
        self.serial += 1
        self.ledger = Ledger(budget, f"e{self.serial}", opens_at=self.now + 2.0, gate=GATE)
        self.waiters = {}
        for process in self.processes:
            if process.alive:
                process.ticket = process.wants = process.order = None
                process.recalled = False
                self.ledger.join(process.holder, process.weights, process.lease)
                with pytest.raises(StaleEpoch):
                    self.ledger.request(process.holder.id, Need(0, 0, 0, 0, 0), Work(1, 0.0, 0.0), 1e9, old.epoch)
        self.drive(revealing=True)

    @invariant()
    def every_byte_is_counted_once(self) -> None:
        self.ledger.check()
        for process in self.processes:
            account = self.ledger.holders.get(process.holder.id)
            assert account is not None or process in self.unseen
            assert account is None or account.nbytes >= process.nbytes
        known = [process for process in self.processes if process not in self.unseen]
        assert set(self.ledger.holders) == {process.holder.id for process in known}
        assert self.ledger.granted <= self.ledger.peak_granted

    @invariant()
    def at_rest_only_contexts_and_weights_are_granted(self) -> None:
        if all(process.lease is None for process in self.processes):
            accounts = self.ledger.holders.values()
            assert self.ledger.granted == sum(account.holder.context + account.weights for account in accounts)

    @invariant()
    def no_waiter_is_lost(self) -> None:
        assert len(self.ledger.tickets) == len(self.waiters)
        assert {process.ticket for process in self.processes if process.ticket} == set(self.waiters)

    def teardown(self) -> None:
        """From any state on, if all obey and release and the dead vanish, everyone is served within moments."""
        if not hasattr(self, "ledger"):
            return
        self.now = max(self.now, self.ledger.opens_at)
        for _ in range(100):
            self.now += GATE.moment
            for process in list(self.processes):
                self.obey(process)
            self.drive(revealing=True)
            if not self.waiters and all(process.lease is None for process in self.processes):
                break
        assert len(self.ledger.tickets) == 0
        assert not any(account.is_unresponsive or account.active for account in self.ledger.holders.values())
        self.every_byte_is_counted_once()
        self.at_rest_only_contexts_and_weights_are_granted()

    def obey(self, process: Process) -> None:
        if not process.alive:
            self.bury(process)
        elif process.lease is not None:
            self.end_run(process, 0)
        elif (command := self.ledger.holders[process.holder.id].command) is not None:
            assert not isinstance(command, Recall)
            process.order = command
            self.answer(process, 0)


Card.TestCase.settings = settings(max_examples=80, stateful_step_count=60, suppress_health_check=[HealthCheck.too_slow])
TestCard = Card.TestCase
