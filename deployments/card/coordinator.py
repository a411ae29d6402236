"""The actor that coordinates the memory of one card. It waits and carries messages; the ledger decides."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

import ray

from deployments.card.command_queues import CommandQueues
from deployments.card.host_copies import HostCopies
from deployments.card.members import CardMembers, Member
from deployments.card.memory_probe import open_probe
from deployments.card.metrics import CardMetrics
from deployments.card.progress import ProgressBoard
from deployments.card.protocol import CoordinatorCalls, Holdings
from deployments.card.report import card_report
from deployments.card.tickets import Tickets
from deployments.card.transfer import Transfers
from deployments.card.watcher import ProcessWatcher
from deployments.logs import configure_logging
from lightx2v.errors import OutOfMemory, StageLost, StaleEpoch
from lightx2v.residency.gate import Gate
from lightx2v.residency.lease import Command, Event, Holder, Lease, Refused, Room, Work
from lightx2v.residency.ledger import Ledger
from lightx2v.types import Progress

SETTLE_SECONDS = 2.0
"""A new epoch grants nothing for this long, so that processes that hold memory of the last epoch join first."""
IDLE_SECONDS = 30.0
"""The actor ends itself after this time without a holder: it is detached, so nobody else would. It keeps the host
copies of a dead process for the same time, so that a successor can attach to them."""
PATIENCE_SECONDS = 10.0
"""A command that is not answered within this time is overdue."""
GATE = Gate()

log = logging.getLogger(__name__)


class Coordinator(CoordinatorCalls):
    """The coordinator of one card. A restart begins a new epoch."""

    def __init__(self, card_id: str) -> None:
        configure_logging()
        self._card_id = card_id
        probe = open_probe(card_id)
        self._total = probe.total()
        self._epoch = uuid.uuid4().hex
        opens_at = time.monotonic() + SETTLE_SECONDS
        self._ledger = Ledger(self._total, self._epoch, opens_at=opens_at, patience=PATIENCE_SECONDS, gate=GATE)
        self._settled = False
        self._members = CardMembers()
        self._transfers = Transfers()
        self._metrics = CardMetrics(card_id)
        self._tickets = Tickets()
        self._rooms: dict[str, Room] = {}
        self._commands = CommandQueues(lambda holder_id: self._ledger.holders[holder_id].command)
        self._watcher = ProcessWatcher(probe)
        self._host_copies = HostCopies()
        self._progress = ProgressBoard()
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._leave)

    async def join(self, member: Member, holdings: Holdings, lease: Lease | None) -> str:
        """Registers a process; joining twice changes nothing. Raises ProcessLookupError if the process is dead."""
        holder, began = member.holder, time.monotonic()
        if holder.id not in self._members.members:
            self._watcher.watch(holder.pid, lambda: self._bury(holder))
            self._host_copies.hold(holder.pid)
            self._members.add(member)
            self._ledger.join(holder, holdings.weights, lease)
            self._idle.cancel()
            self._replan()
            self._ledger.opens_at += time.monotonic() - began  # planning blocked all other calls
        self._transfers.note(holder.id, holdings.transferred)
        self._pump()
        return self._epoch

    async def lease(self, epoch: str, holder_id: str, room: Room, work: Work, seconds: float) -> Lease:
        """Waits for the right to run, in the order of the gate. Raises OutOfMemory or DeadlineExceeded."""
        self._fence(epoch, holder_id)
        deadline = time.monotonic() + seconds
        self._forget(holder_id)
        await self.ready(epoch, holder_id)
        need = self._members.need(holder_id, room, work.jobs)
        self._rooms[holder_id] = room
        ticket = self._ledger.request(holder_id, need, work, deadline, epoch)
        self._tickets.open(ticket, holder_id)
        self._pump()
        try:
            return await self._tickets.outcome(ticket)
        except asyncio.CancelledError:
            self._ledger.cancel(ticket, epoch)
            self._pump()
            raise

    async def tell(self, epoch: str, holder_id: str, work: Work, progress: Mapping[str, Progress]) -> None:
        """Notes what waits or runs at a holder, for the gate, and the progress of each request until the run ends."""
        self._fence(epoch, holder_id)
        if self._ledger.holders[holder_id].active:
            self._progress.note(holder_id, progress)
        need = self._members.need(holder_id, self._rooms[holder_id], work.jobs) if holder_id in self._rooms else None
        self._ledger.waits(holder_id, work, epoch, need)
        self._pump()

    async def release(self, epoch: str, holder_id: str, lease_id: str, holdings: Holdings) -> None:
        """Ends a run. An unknown lease has been returned already and is ignored."""
        self._fence(epoch, holder_id)
        self._count(holder_id, holdings)
        self._progress.forget(holder_id)
        try:
            self._ledger.release(lease_id, holdings.weights, epoch)
        finally:
            if self._members.is_stale(time.monotonic()):
                self._replan()
            self._pump()
        if not any(account.active for account in self._ledger.holders.values()):
            self._ledger.check()

    async def abandon(self, epoch: str, holder_id: str) -> None:
        """Voids the caller's last request for a lease; does nothing if that is over."""
        self._fence(epoch, holder_id)
        self._forget(holder_id)
        self._pump()

    async def next_command(self, epoch: str, holder_id: str) -> Command:
        """Waits for a command. Cancels an earlier call of the same holder, whose caller is gone."""
        self._fence(epoch, holder_id)
        return await self._commands.next(holder_id)

    async def resized(self, epoch: str, holder_id: str, command_id: str, holdings: Holdings) -> None:
        """Takes the answer to a command. It is ignored if the command has lapsed or has been answered."""
        self._fence(epoch, holder_id)
        self._count(holder_id, holdings)
        self._ledger.resized(holder_id, holdings.weights, epoch, command_id)
        self._pump()

    async def introduce(self, epoch: str, holder_id: str, member: Member) -> None:
        """Ends the lease of the start and counts the process instead, before another can be granted the bytes."""
        self._fence(epoch, holder_id)
        self._forget(holder_id)
        await self.update(epoch, holder_id, member)

    async def update(self, epoch: str, holder_id: str, member: Member) -> None:
        """Plans the card anew with the new description of a process."""
        self._fence(epoch, holder_id)
        log.info("%s: set %d MiB aside for the process", member.holder, member.holder.context >> 20)
        self._members.add(member)
        self._ledger.weigh(member.holder)
        self._replan()
        self._pump()

    async def progress(self, request_id: str) -> Progress | None:
        """The progress of a request; None if it does not run on this card."""
        return self._progress.find(request_id)

    async def max_replicas(self, epoch: str, holder_id: str) -> int:
        """The number of replicas of the caller's stage that fit beside the other stages as they are; at least 1."""
        self._fence(epoch, holder_id)
        return self._members.max_replicas(holder_id, self._ledger.budget)

    async def ready(self, epoch: str, holder_id: str) -> None:
        """Raises OutOfMemory if the caller's model does not fit, even after a new plan: a foreign process may have left
        the card."""
        self._fence(epoch, holder_id)
        try:
            self._members.check(holder_id)
        except OutOfMemory:
            self._replan()
            self._pump()
            self._members.check(holder_id)

    async def report(self) -> dict[str, Any]:
        """The card's entry of GET /v1/residency."""
        figures = card_report(self._ledger, self._members, self._transfers.total)
        return {"id": self._card_id, **figures, "epoch": self._epoch, "coordinator_pid": os.getpid()}

    def _replan(self) -> None:
        """Computes budget and shares anew after a process came or went. Foreign processes count only once the epoch has
        settled: until then, they may be stages that have not joined yet."""
        foreign = self._watcher.foreign_bytes(self._members.pids) if self._settled else 0
        self._ledger.resize(min([self._total - foreign, *self._members.caps]))
        self._members.plan(self._ledger.budget)
        for holder_id, member in self._members.members.items():
            self._ledger.expect(holder_id, self._members.wish(member))

    def _pump(self) -> None:
        """Carries out the ledger's decisions, and sets a timer for the next one that is due by time alone."""
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
        self._metrics.update(self._ledger)

    def _carry_out(self, event: Event) -> None:
        if isinstance(event, Command):
            self._commands.put(event)
        elif isinstance(event, Refused):
            self._tickets.refuse(event.ticket, event.error)
        else:
            self._members.note(event.lease.holder, time.monotonic())
            self._tickets.grant(event.ticket, event.lease)

    async def _bury(self, holder: Holder) -> None:
        """Removes a dead process. Its bytes return to the ledger once the driver has released them."""
        log.warning("%s died; its memory returns when the driver releases it", holder)
        self._void(self._ledger.dead(holder.id), holder)
        self._pump()
        await self._watcher.released(holder.pid)
        self._void(self._ledger.gone(holder.id), holder)
        self._members.remove(holder.id)
        self._commands.close(holder.id)
        self._rooms.pop(holder.id, None)
        self._tickets.forget(holder.id)
        self._progress.forget(holder.id)
        self._transfers.bury(holder.id)
        loop = asyncio.get_running_loop()
        loop.call_later(IDLE_SECONDS, self._release_copies)
        if self._members.members:
            self._replan()
            self._pump()
        else:
            self._idle = loop.call_later(IDLE_SECONDS, self._leave)

    def _count(self, holder_id: str, holdings: Holdings) -> None:
        copied = self._transfers.note(holder_id, holdings.transferred)
        self._metrics.count(self._members.members[holder_id].holder, copied)

    def _release_copies(self) -> None:
        self._host_copies.release(self._members.pids)

    def _forget(self, holder_id: str) -> None:
        """Voids the holder's last request for a lease; does nothing if that is over."""
        if (ticket := self._tickets.forget(holder_id)) is not None:
            self._ledger.cancel(ticket, self._epoch)
            self._tickets.refuse(ticket, StaleEpoch(f"{holder_id} no longer wants this lease"))

    def _void(self, tickets: list[str], holder: Holder) -> None:
        for ticket in tickets:
            self._tickets.refuse(ticket, StageLost(f"{holder} died while it waited"))

    def _fence(self, epoch: str, holder_id: str) -> None:
        if epoch != self._epoch or holder_id not in self._members.members:
            raise StaleEpoch(f"{holder_id} is not registered in this epoch; join again")

    def _leave(self) -> None:
        log.info("no process uses %s any more; the coordinator ends", self._card_id)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
