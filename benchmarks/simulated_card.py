"""One card on a virtual clock: the server's ledger, gate and plan, and stages that do as they are told."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from benchmarks.simulated_models import CONTEXT, LINK, Model, StageModel
from deployments.card.members import CardMembers, Member
from lightx2v.residency.gate import Gate
from lightx2v.residency.lease import Event, Fetch, Granted, Holder, Lease, Recall, Refused, Room, Shrink, Work
from lightx2v.residency.ledger import Ledger

HOP = 0.004
"""Seconds from the end of one stage to the arrival at the next, and from an answer to the client's next request."""
SWITCH = 0.010
"""Seconds in which a process obeys a command, and a lease reaches the process: half of 20 ms between two of them."""


class Clock:
    """Virtual seconds, and what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = count()

    def call_at(self, time: float, action: Callable[[], None]) -> None:
        """Runs `action` at that time, or now if it has passed."""
        heapq.heappush(self._events, (max(time, self.now), next(self._count), action))

    def call_later(self, seconds: float, action: Callable[[], None]) -> None:
        """Runs `action` after `seconds`."""
        self.call_at(self.now + seconds, action)

    def run(self, until: float) -> None:
        """Runs everything that happens until then."""
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            action()


@dataclass(eq=False, slots=True)
class Request:
    """A request on its way through the stages of its model."""

    model: Model
    admitted_at: float
    done: Callable[[Request], None]
    stage: int = 0
    rounds_left: int = 0
    finished_at: float = field(default=0.0)

    @property
    def seconds(self) -> float:
        """From the admission to the answer."""
        return self.finished_at - self.admitted_at


class Card:
    """A card that serves models under a budget. `moved`: bytes that crossed its link. `members`: those of a card of the
    same models, whose plan and mix it shares: a plan takes a tenth of a second."""

    def __init__(
        self,
        clock: Clock,
        budget: int,
        models: Sequence[Model],
        gate: Gate | None = None,
        members: CardMembers | None = None,
    ) -> None:
        self.clock, self.moved = clock, 0
        self.ledger = Ledger(budget, "epoch", gate=gate)
        self.members = members or CardMembers()
        self.stages = {(model.name, one.name): Stage(self, model, one) for model in models for one in model.stages}
        self._by_holder = {stage.holder.id: stage for stage in self.stages.values()}
        self._computes_until = self._links_until = 0.0
        for member in self.members.members.values():
            self.ledger.join(member.holder)
        if members is None:
            self.members.plan(budget)
        self._expect()

    def plan(self) -> None:
        """Plans the card for the present mix of models, as the coordinator does."""
        self.members.plan(self.ledger.budget)
        self._expect()

    def _expect(self) -> None:
        for member in self.members.members.values():
            self.ledger.expect(member.holder.id, self.members.wish(member))

    def submit(self, request: Request) -> None:
        """Hands a request to its next stage."""
        stage = request.model.stages[request.stage]
        request.rounds_left = stage.rounds
        self.stages[request.model.name, stage.name].submit(request)

    def occupy(self, seconds: float, nbytes: int) -> float:
        """The end of a round that computes for `seconds` and moves `nbytes`. Rounds of several stages share both."""
        self.moved += nbytes
        self._computes_until = max(self._computes_until, self.clock.now) + seconds
        if nbytes:
            self._links_until = max(self._links_until, self.clock.now) + nbytes / LINK
        return max(self._computes_until, self._links_until if nbytes else 0.0)

    def pump(self) -> None:
        """Carries out the ledger's decisions."""
        for event in self.ledger.advance(self.clock.now):
            self._carry_out(event)
        if (due := self.ledger.next_deadline()) is not None:
            self.clock.call_at(due, partial(self._wake, due))

    def _wake(self, due: float) -> None:
        if self.ledger.next_deadline() == due:
            self.pump()

    def _carry_out(self, event: Event) -> None:
        if isinstance(event, Granted):
            self.members.note(event.lease.holder, self.clock.now)
            stage = self._by_holder[event.lease.holder]
            self.clock.call_later(SWITCH, partial(stage.begin, event.lease))
        elif isinstance(event, Refused):
            raise event.error
        else:
            stage = self._by_holder[event.holder]
            self.clock.call_later(SWITCH, partial(stage.obey, event))


class Stage:
    """A stage's process: its jobs, and the weights that it holds."""

    def __init__(self, card: Card, model: Model, stage: StageModel) -> None:
        self._card, self._clock, self._stage = card, card.clock, stage
        self._held = 0
        self._queue: deque[Request] = deque()
        self._running: list[Request] = []
        self._lease: Lease | None = None
        self._recalled = self._asked = False
        reachable = stage.size.reachable
        self.holder = Holder(f"{model.name}-{stage.name}", model.name, stage.name, 0, CONTEXT, reachable)
        card.members.add(Member(self.holder, stage.size, "auto", None))

    def submit(self, request: Request) -> None:
        """Adds a job."""
        self._queue.append(request)
        self._tell()

    def begin(self, lease: Lease) -> None:
        """Runs the first round of a lease."""
        self._lease, self._asked, self._recalled = lease, False, False
        self._round(self._stage.size.reachable - self._held)
        self._held = lease.weights

    def obey(self, command: Shrink | Fetch | Recall) -> None:
        """Carries out a command, unless it has lapsed."""
        if isinstance(command, Recall):
            self._recalled = self._lease is not None and self._lease.id == command.lease
        elif self._card.ledger.holders[self.holder.id].command == command:
            if isinstance(command, Fetch):
                end = self._card.occupy(0.0, command.weights - self._held)
                self._clock.call_at(end, partial(self._report, command))
            else:
                self._report(command)

    def _report(self, command: Shrink | Fetch) -> None:
        self._held = (
            max(self._held, command.weights) if isinstance(command, Fetch) else min(self._held, command.weights)
        )
        self._card.ledger.resized(self.holder.id, self._held, "epoch", command.id)
        self._card.pump()

    def _round(self, nbytes: int) -> None:
        lease = self._lease
        assert lease is not None
        while self._queue and len(self._running) < lease.width and not self._recalled:
            self._running.append(self._queue.popleft())
        if self._recalled or not self._running:
            self._end(lease)
            return
        self._clock.call_at(self._card.occupy(len(self._running) * self._stage.seconds, nbytes), self._after_round)

    def _after_round(self) -> None:
        for request in self._running:
            request.rounds_left -= 1
            if not request.rounds_left:
                self._clock.call_later(HOP, partial(self._pass_on, request))
        self._running = [request for request in self._running if request.rounds_left]
        self._tell()
        assert self._lease is not None
        self._round(self._stage.size.reachable - self._lease.weights)

    def _end(self, lease: Lease) -> None:
        self._queue.extendleft(reversed(self._running))
        self._running, self._lease, self._held = [], None, lease.keep
        self._card.ledger.release(lease.id, lease.keep, "epoch")
        if self._card.members.is_stale(self._clock.now):
            self._card.plan()
        self._tell()
        self._card.pump()

    def _pass_on(self, request: Request) -> None:
        request.stage += 1
        if request.stage < len(request.model.stages):
            self._card.submit(request)
        else:
            request.finished_at = self._clock.now
            request.done(request)

    def _tell(self) -> None:
        """Asks for a lease if there is work and none was asked for; else tells what is left."""
        jobs = [*self._running, *self._queue]
        seconds = self._stage.seconds * sum(request.rounds_left for request in jobs)
        work = Work(len(jobs), seconds, min((request.admitted_at for request in jobs), default=0.0))
        ledger, room = self._card.ledger, Room(self._stage.size.activation_bytes, self._stage.size.member_bytes)
        need = self._card.members.need(self.holder.id, room, len(jobs))
        if jobs and self._lease is None and not self._asked:
            self._asked = True
            ledger.request(self.holder.id, need, work, 1e9, "epoch")
        else:
            ledger.waits(self.holder.id, work, "epoch", need)
        self._card.pump()
