"""The actor around the ledger of one card: it waits, watches processes and carries messages; the ledger decides."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections import defaultdict
from typing import Any

import ray

from deployments.inbox import CommandQueues
from deployments.keeper import Keeper
from deployments.logs import speak
from deployments.moved import Moved
from deployments.probes import open_probe
from deployments.tenants import Member, Tenants
from deployments.tickets import Tickets
from lightx2v.core import Progress, StageName
from lightx2v.errors import OutOfMemory, StageLost, StaleEpoch
from lightx2v.residency.lease import Command, Event, Holder, Lease, Refused
from lightx2v.residency.ledger import Ledger

SETTLE_SECONDS = 2.0
"""A new epoch grants nothing for so long: whoever holds memory from the one before joins first."""
IDLE_SECONDS = 30.0
"""Without any holder for so long, the actor ends itself; it is detached and nobody else would. As long it keeps the
host copy of a process that died, for its successor to attach to."""
PROBE_SECONDS = 0.02
"""Between two looks at the driver while a dead process is still listed there; it has no event for that."""
PATIENCE_SECONDS = 10.0

log = logging.getLogger(__name__)


class Coordinator:
    """One card. Every call of a stage names the epoch it joined; a restart begins a new one."""

    def __init__(self, card_id: str) -> None:
        speak()
        self._card_id = card_id
        self._probe = open_probe(card_id)
        self._epoch = uuid.uuid4().hex
        now = time.monotonic()
        self._total = self._probe.total()
        opens_at = now + SETTLE_SECONDS
        self._ledger = Ledger(self._total, self._epoch, opens_at=opens_at, patience=PATIENCE_SECONDS)
        self._settled = False
        self._tenants = Tenants()
        self._moved: defaultdict[str, Moved] = defaultdict(Moved)
        self._tickets = Tickets()
        self._commands = CommandQueues(lambda holder_id: self._ledger.holders[holder_id].command)
        self._timer: asyncio.TimerHandle | None = None
        self._watches: set[asyncio.Task[None]] = set()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._leave)
        self._keeper = Keeper()
        self._progress: dict[str, tuple[str, Progress]] = {}

    async def join(self, member: Member, weights: int, lease: Lease | None, moved: Moved) -> str:
        """Registers a process with what it holds; the epoch that it joined. Joining twice changes nothing."""
        holder, began = member.holder, time.monotonic()
        if holder.id not in self._tenants.members:
            self._watch(holder)
            self._keeper.hold(holder.pid)
            self._tenants.add(member)
            self._ledger.join(holder, weights, lease)
            self._idle.cancel()
            self._replan()
            self._ledger.opens_at += time.monotonic() - began  # nobody was heard while it was planned
        self._moved[holder.id] = moved
        self._pump()
        return self._epoch

    async def lease(self, epoch: str, holder_id: str, workspace: int, admitted_at: float, seconds: float) -> Lease:
        """Waits for the right to run. Raises OutOfMemory, DeadlineExceeded or StaleEpoch.

        `admitted_at`: unix seconds of the user's request; the oldest is served first. `seconds` are left to it.
        """
        self._fence(epoch, holder_id)
        deadline = time.monotonic() + seconds
        self._forget(holder_id)
        await self.ready(self._tenants.members[holder_id].holder.model)
        need = self._tenants.need(holder_id, workspace)
        ticket = self._ledger.request(holder_id, need, admitted_at, deadline, epoch)
        self._tickets.open(ticket, holder_id)
        self._pump()
        try:
            return await self._tickets.outcome(ticket)
        except asyncio.CancelledError:
            self._ledger.cancel(ticket, epoch)
            self._pump()
            raise

    async def release(self, epoch: str, lease_id: str, weights: int, holder_id: str, moved: Moved) -> None:
        """The run is over; the process holds `weights` now."""
        self._fence(epoch, holder_id)
        self._moved[holder_id] = moved
        self._progress.pop(holder_id, None)
        try:
            self._ledger.release(lease_id, weights, epoch)
        finally:
            self._pump()
        if not any(account.active for account in self._ledger.holders.values()):
            self._ledger.check()

    async def abandon(self, epoch: str, holder_id: str) -> None:
        """The caller of `lease` went away and cannot know whether it was granted; either way it is void."""
        self._fence(epoch, holder_id)
        self._forget(holder_id)
        self._pump()

    async def next_command(self, epoch: str, holder_id: str) -> Command:
        """Waits until this process has to give way, or may fetch what it needs next. Until that is answered, every
        call gets the same command."""
        self._fence(epoch, holder_id)
        return await self._commands.next(holder_id)

    async def resized(self, epoch: str, holder_id: str, weights: int, command_id: str, moved: Moved) -> None:
        """The process carried the command out and holds `weights` now."""
        self._ledger.resized(holder_id, weights, epoch, command_id)
        self._moved[holder_id] = moved
        self._pump()

    async def weigh(self, epoch: str, member: Member) -> None:
        """The process itself takes more of the card than it said when it joined, or less."""
        self._fence(epoch, member.holder.id)
        log.info("%s: %d MiB are set aside for the process", member.holder, member.holder.context >> 20)
        self._tenants.add(member)
        self._ledger.weigh(member.holder)
        self._replan()
        self._pump()

    async def advance(self, epoch: str, holder_id: str, request_id: str, progress: Progress) -> None:
        """How far the run of this process is; forgotten when it ends, so that there is one per process at most."""
        self._fence(epoch, holder_id)
        if self._ledger.holders[holder_id].active:
            self._progress[holder_id] = request_id, progress

    async def progress(self, request_id: str) -> Progress | None:
        """How far a request is that runs on this card."""
        return next((progress for running, progress in self._progress.values() if running == request_id), None)

    async def room(self, model: str, stage: StageName) -> int:
        """How many replicas of a stage the card has room for, beside all others as they are."""
        return self._tenants.room(model, stage, self._ledger.budget)

    async def ready(self, model: str) -> None:
        """Raises OutOfMemory if the budget is too small for this model however its weights are moved."""
        try:
            self._tenants.check(model)
        except OutOfMemory:  # a stranger may have left
            self._replan()
            self._pump()
            self._tenants.check(model)

    async def report(self) -> dict[str, Any]:
        """The card's entry of GET /v1/residency."""
        ledger = self._ledger
        return {
            "id": self._card_id,
            "budget_bytes": ledger.budget,
            "granted_bytes": ledger.granted,
            "peak_granted_bytes": ledger.peak_granted,
            "h2d_bytes_total": sum(moved.h2d for moved in self._moved.values()),
            "d2h_bytes_total": sum(moved.d2h for moved in self._moved.values()),
            "grants_total": ledger.grants_total,
            "shrinks_total": ledger.shrinks_total,
            "evictions_total": ledger.evictions_total,
            "fetches_total": ledger.fetches_total,
            "waiting": ledger.waiting,
            "epoch": self._epoch,
            "coordinator_pid": os.getpid(),
            "stages": [self._stage_report(holder_id) for holder_id in ledger.holders],
        }

    def _stage_report(self, holder_id: str) -> dict[str, Any]:
        account = self._ledger.holders[holder_id]
        return {
            "model": account.holder.model,
            "stage": account.holder.stage,
            "pid": account.holder.pid,
            "running": account.active,
            "context_bytes": account.holder.context,
            "resident_bytes": account.weights,
            "planned_bytes": self._tenants.planned(account.holder),
            "reachable_bytes": account.holder.reachable,
        }

    def _replan(self) -> None:
        """Budgets and shares anew, after somebody came or went."""
        self._ledger.resize(min([self._total - self._foreign(), *self._tenants.caps]))
        self._tenants.plan(self._ledger.budget)
        for holder_id, member in self._tenants.members.items():
            self._ledger.expect(holder_id, self._tenants.wish(member))

    def _foreign(self) -> int:
        """Bytes of processes that are not ours. 0 where the driver lists other pids than this namespace's, and while
        those that are ours may not have joined yet."""
        if not self._settled:
            return 0
        try:
            used = self._probe.used()
        except OSError as error:
            log.warning("%s; counting nobody else", error)
            return 0
        ours = {account.holder.pid for account in self._ledger.holders.values()}
        visible = any(pid in used for pid in ours)
        return sum(nbytes for pid, nbytes in used.items() if pid not in ours) if visible else 0

    def _pump(self) -> None:
        """Carries out what the ledger decides, and comes back when it next has something to decide by itself."""
        now = time.monotonic()
        if not self._settled and now >= self._ledger.opens_at:
            self._settled = True
            self._replan()
        for event in self._ledger.advance(now):
            self._carry_out(event)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (due := self._ledger.next_deadline()) is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now), self._pump)

    def _carry_out(self, event: Event) -> None:
        if isinstance(event, Command):
            self._commands.put(event)
        elif isinstance(event, Refused):
            self._tickets.refuse(event.ticket, event.error)
        else:
            self._tickets.grant(event.ticket, event.lease)

    def _watch(self, holder: Holder) -> None:
        """Raises ProcessLookupError for a process that is dead already."""
        descriptor = os.pidfd_open(holder.pid)
        loop = asyncio.get_running_loop()

        def died() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            watch = loop.create_task(self._bury(holder))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)

        loop.add_reader(descriptor, died)

    async def _bury(self, holder: Holder) -> None:
        """Its bytes return when the driver no longer lists it, not when the kernel says that it is dead."""
        log.warning("%s died; its memory returns when the driver lets go of it", holder)
        self._void(self._ledger.dead(holder.id), holder)
        self._pump()
        while self._is_listed(holder.pid):
            await asyncio.sleep(PROBE_SECONDS)
        self._void(self._ledger.gone(holder.id), holder)
        self._tenants.remove(holder.id)
        self._commands.close(holder.id)
        self._tickets.forget(holder.id)
        self._progress.pop(holder.id, None)
        self._moved["gone"].h2d += self._moved[holder.id].h2d
        self._moved["gone"].d2h += self._moved.pop(holder.id).d2h
        loop = asyncio.get_running_loop()
        loop.call_later(IDLE_SECONDS, self._release_copies)
        if self._tenants.members:
            self._replan()
            self._pump()
        else:
            self._idle = loop.call_later(IDLE_SECONDS, self._leave)

    def _release_copies(self) -> None:
        self._keeper.release([member.holder.pid for member in self._tenants.members.values()])

    def _is_listed(self, pid: int) -> bool:
        """Also while the driver does not answer: bytes return only when it says so."""
        try:
            return pid in self._probe.used()
        except OSError as error:
            log.warning("%s", error)
            return True

    def _forget(self, holder_id: str) -> None:
        """Voids what the holder asked for last; if that is over, nothing."""
        if (ticket := self._tickets.forget(holder_id)) is not None:
            self._ledger.cancel(ticket, self._epoch)
            self._tickets.refuse(ticket, StaleEpoch(f"{holder_id} no longer wants this lease"))

    def _void(self, tickets: list[str], holder: Holder) -> None:
        for ticket in tickets:
            self._tickets.refuse(ticket, StageLost(f"{holder} died while it waited"))

    def _fence(self, epoch: str, holder_id: str) -> None:
        if epoch != self._epoch or holder_id not in self._tenants.members:
            raise StaleEpoch(f"{holder_id} is not registered in this epoch; join again")

    def _leave(self) -> None:
        log.info("nobody holds memory of %s; leaving", self._card_id)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
