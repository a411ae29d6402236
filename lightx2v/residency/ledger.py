"""Every byte of one GPU, by owner. The ledger decides; who drives it carries out what `advance` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import count
from math import inf
from types import MappingProxyType

from lightx2v.errors import DeadlineExceeded, OutOfMemory, StaleEpoch
from lightx2v.residency.account import Account, IntegrityError, Run, Ticket
from lightx2v.residency.accounts import Accounts
from lightx2v.residency.claim import Claim, claim
from lightx2v.residency.commands import Commands, note_overdue
from lightx2v.residency.counters import Counters
from lightx2v.residency.eviction import evictions
from lightx2v.residency.gate import Gate
from lightx2v.residency.lease import Command, Event, Fetch, Granted, Holder, Lease, Need, Refused, Shrink, Wish, Work
from lightx2v.residency.prefetch import offers
from lightx2v.residency.recalls import outgrown, recalls
from lightx2v.residency.tickets import Tickets

UNKNOWN = Work(1, 0.0, 0.0)
"""The work of a run that another ledger granted, until its holder tells."""


class Ledger:
    """Grants memory in the order of its gate, and takes it from the holder that needs it last.

    Times are monotonic seconds and come from the caller. Weights at rest stay granted until their holder reports them
    dropped; those of a dead process until it is gone. `epoch` fences: what was agreed with another ledger is refused.
    """

    def __init__(
        self, budget: int, epoch: str, *, opens_at: float = 0.0, patience: float = 10.0, gate: Gate | None = None
    ) -> None:
        self.epoch = epoch
        self.opens_at = opens_at
        self.gate = gate or Gate()
        self.peak_granted = 0
        self.counters = Counters()
        self._accounts = Accounts(budget)
        self._waiting = Tickets()
        self._last: Holder | None = None
        self._turn = count(1)
        self._commands = Commands(patience, self.counters, self._next_id)
        self._now = 0.0
        self._looks: list[float] = []
        self._comes_back, self._keeps_until = False, 0.0
        self._allowed = max(budget, 0)

    @property
    def budget(self) -> int:
        """Bytes that can be granted."""
        return self._accounts.budget

    @property
    def granted(self) -> int:
        """Bytes that somebody has: processes, weights, and what runs take besides."""
        return self._accounts.granted

    @property
    def free(self) -> int:
        """Bytes that nobody has. Negative while a join or a smaller budget has revealed too much."""
        return self._accounts.free

    @property
    def tickets(self) -> Mapping[str, Ticket]:
        """Those that wait, by their ids."""
        return MappingProxyType(self._waiting)

    @property
    def holders(self) -> Mapping[str, Account]:
        """Accounts by the ids of their holders."""
        return MappingProxyType(self._accounts)

    def work(self, holder_id: str) -> Work | None:
        """What waits or runs at a holder; None if it has neither a ticket nor a lease."""
        tickets, run = self._waiting.of(holder_id), self._accounts[holder_id].run
        return tickets[-1].work if tickets else run.work if run else None

    def join(self, holder: Holder, weights: int = 0, lease: Lease | None = None) -> None:
        """Register a process, with what it holds if a previous ledger granted it that. Known ids change nothing."""
        if holder.id in self._accounts:
            return
        held = max(weights, lease.weights) if lease else weights
        run = Run(self.opens_at, UNKNOWN) if lease else None
        self._accounts[holder.id] = Account(holder, held, next(self._turn), lease, before=weights, run=run)
        self._reveal()

    def resize(self, budget: int) -> None:
        """Sets the budget anew: other users of the card took memory or gave it back."""
        self._accounts.budget = budget
        self._reveal()

    def weigh(self, holder: Holder) -> None:
        """Replaces a holder by itself with another context, by a later measurement."""
        self._accounts[holder.id].holder = holder
        self._reveal()

    def expect(self, holder_id: str, wish: Wish | None) -> None:
        """Sets what the holder is to have before its next run, as far as memory is free; None: nothing."""
        account = self._accounts[holder_id]
        account.wish, account.offered = wish, 0

    def request(self, holder_id: str, need: Need, work: Work, deadline: float, epoch: str) -> str:
        """A ticket for what waits at the holder; its id is also that of the lease to come.

        Whoever asks to run has heard of no overdue command, so that lapses: else a lost answer would lock it out.
        """
        account = self._living(holder_id, epoch)
        self._accounts.require(account, need)
        if account.is_unresponsive:
            account.pending = None
        turn = next(self._turn)
        ticket = Ticket(f"{self.epoch}:{turn}", account.holder, need, work, turn, deadline)
        self._waiting.add(ticket)
        return ticket.id

    def waits(self, holder_id: str, work: Work, epoch: str, need: Need | None = None) -> None:
        """Replaces the work of the holder's ticket, and its `need` for that much. While it runs, what is left of the
        work; a run that was granted for fewer ends early if more could run together."""
        account = self._living(holder_id, epoch)
        if account.run is not None and account.lease is not None:
            account.run.tell(work)
            width = account.lease.width
            account.run.is_outgrown = need is not None and width < min(work.jobs, need.width)
        self._waiting.tell(holder_id, work, need)

    def release(self, lease_id: str, weights: int, epoch: str) -> None:
        """The run ended, and the holder holds `weights` now. An unknown lease is one that has been returned already."""
        self._fence(epoch)
        account = self._accounts.leased(lease_id)
        if account is not None and account.lease is not None:
            self._comes_back = account.run is not None and self._accounts.comes_back(account.holder, account.run)
            limit, account.lease, account.run = account.lease.weights, None, None
            account.used = next(self._turn)
            account.settle(weights, limit)

    def resized(self, holder_id: str, weights: int, epoch: str, command_id: str | None = None) -> None:
        """An idle holder dropped or fetched weights and holds `weights` now. The answer to a command that has lapsed,
        or has been answered, is ignored."""
        account = self._living(holder_id, epoch)
        if self._commands.answered(account, weights, command_id):
            account.settle(weights, account.weights)

    def cancel(self, ticket_id: str, epoch: str) -> None:
        """The caller went away: its ticket is void, and a lease that it was granted meanwhile counts as unused."""
        self._fence(epoch)
        self._waiting.pop(ticket_id, None)
        account = self._accounts.leased(ticket_id)
        if account is not None:
            self.release(ticket_id, account.before, epoch)

    def dead(self, holder_id: str) -> list[str]:
        """Its process died. Its bytes stay counted; its tickets are void and returned."""
        account = self._accounts.get(holder_id)
        if account is None:
            return []
        account.dying, account.pending = True, None
        return self._waiting.drop(holder_id)

    def gone(self, holder_id: str) -> list[str]:
        """The driver no longer lists its process: its bytes are free. Returns tickets as `dead` does."""
        dropped = self.dead(holder_id)
        self._accounts.pop(holder_id, None)
        return dropped

    def advance(self, now: float) -> list[Event]:
        """The events to carry out now. Call it after any change, and at `next_deadline()`."""
        self._now, self._looks = now, []
        if self._comes_back:
            self._comes_back, self._keeps_until = False, now + self.gate.moment
        self._allowed = min(self._allowed, max(self.budget, self.granted))
        note_overdue(self._accounts.values(), now)
        self._waiting.look(now)
        events: list[Event] = [*self._expire(now), *map(self._commands.recall, outgrown(self._accounts))]
        if now >= self.opens_at:
            events += self._serve_all(now)
            if not self._waiting and self._last is not None:
                events += self._fetch(self._last, now)
            if self._accounts.runs:
                bounds = (self.gate.overdue_at(ticket) for ticket in self._waiting.values())
                self._looks += [bound for bound in bounds if now < bound < inf]
        return events

    def next_deadline(self) -> float | None:
        """When `advance` has something to do even if nothing else happens."""
        times = [ticket.deadline for ticket in self._waiting.values()]
        commands = [account.pending for account in self._accounts.values() if account.pending]
        times += [command.due for command in commands if not command.overdue]
        if self._waiting and self._now < self.opens_at:
            times.append(self.opens_at)
        return min([*times, *self._looks], default=None)

    def check(self) -> None:
        """Raise IntegrityError if an invariant is broken."""
        self._accounts.check(self._allowed)
        for ticket in self._waiting.values():
            if ticket.holder.id not in self._accounts or self._accounts[ticket.holder.id].dying:
                raise IntegrityError(f"ticket {ticket.id} waits for {ticket.holder}, which is dead")

    def _serve_all(self, now: float) -> Iterator[Event]:
        """Serves the first, and then the next, until one has to wait; then whoever fits beside it."""
        while order := self._order(now):
            yield from self._serve(order[0], now)
            if order[0].id in self._waiting:
                yield from self._serve_beside(order[0], order[1:], now)
                return

    def _order(self, now: float) -> list[Ticket]:
        """Those that wait and do not run, the first one first."""
        last = self._last.plan if self._last else None
        keys = {}
        for ticket in self._waiting.values():
            if not self._accounts[ticket.holder.id].active:
                claimed = claim(self._accounts, ticket)
                keys[ticket.id] = self.gate.key(ticket, claimed.moved if claimed else 0, last, now)
        return [self._waiting[ticket_id] for ticket_id in sorted(keys, key=lambda ticket_id: keys[ticket_id])]

    def _serve_beside(self, first: Ticket, others: list[Ticket], now: float) -> Iterator[Event]:
        """Grants what is free to those behind the first while it waits for a run to end, unless its switch has begun.
        Nobody passes one that has waited for long."""
        if first.is_begun or self.gate.is_overdue(first, now):
            return
        for ticket in others:
            claimed = claim(self._accounts, ticket)
            if claimed is not None and claimed.fits:
                yield self._grant(claimed, now)
            elif self.gate.is_overdue(ticket, now):
                return

    def _serve(self, ticket: Ticket, now: float) -> Iterator[Event]:
        account = self._accounts[ticket.holder.id]
        try:
            claimed = claim(self._accounts, ticket)
            if claimed is None:
                self._accounts.require(account, ticket.need)
                self._accounts.require_responses(account, ticket.need, self._commands.patience)
            elif claimed.fits:
                yield self._grant(claimed, now)
            else:
                yield from self._make_room(claimed, now)
        except OutOfMemory as error:
            del self._waiting[ticket.id]
            yield Refused(ticket.id, error)

    def _grant(self, claimed: Claim, now: float) -> Granted:
        ticket, account = claimed.ticket, claimed.account
        grant = ticket.need.grant(claimed.weights, account.holder.reachable)
        account.lease = Lease(**asdict(grant), id=ticket.id, holder=account.holder.id)
        account.run = Run(now, ticket.work, ticket.work.jobs)
        account.before, account.weights, account.used = account.weights, claimed.weights, next(self._turn)
        account.offered, self._last = 0, account.holder
        del self._waiting[ticket.id]
        self.counters.grants += 1
        self.peak_granted = max(self.peak_granted, self.granted)
        return Granted(ticket.id, account.lease)

    def _make_room(self, claimed: Claim, now: float) -> list[Command]:
        """Commands for what neither runs nor earlier commands will bring back. As long as a run has to end for it by
        itself, none: until then, the gate may still choose another ticket."""
        ticket = claimed.ticket
        is_urgent = ticket.is_begun or self.gate.is_overdue(ticket, now)
        is_other = self._last is not None and ticket.holder.plan != self._last.plan
        if is_other and now < self._keeps_until and not is_urgent:
            self._looks.append(self._keeps_until)
            return []
        at, runs = recalls(self._accounts, claimed, self.gate, not is_urgent)
        commands: list[Command] = [self._commands.recall(run) for run in runs if at <= now]
        if now < at < inf:
            self._looks.append(at)
        if commands or is_urgent or not runs:
            commands += self._shrinks(claimed, now)
        ticket.is_begun = ticket.is_begun or bool(commands)
        return commands

    def _shrinks(self, claimed: Claim, now: float) -> Iterator[Shrink]:
        account = claimed.account
        lacking = claimed.lacking - sum(other.returning for other in self._accounts.values())
        if account.pending is None and account.weights > claimed.weights:
            yield self._commands.shrink(account, account.weights - claimed.weights, now)
        for holder_id, nbytes in evictions(self._accounts.values(), account, lacking).items():
            yield self._commands.shrink(self._accounts[holder_id], nbytes, now)

    def _fetch(self, last: Holder, now: float) -> Iterator[Fetch]:
        """Offers free memory to the stages that run next, while nobody waits. It counts as held from now on."""
        for account, to in list(offers(self._accounts.values(), last, self.free)):
            yield self._commands.fetch(account, to, now)
            self.peak_granted = max(self.peak_granted, self.granted)

    def _next_id(self) -> str:
        return f"{self.epoch}:{next(self._turn)}"

    def _expire(self, now: float) -> Iterator[Refused]:
        for ticket in self._waiting.expire(now):
            yield Refused(ticket.id, DeadlineExceeded(f"{ticket.holder} got no device memory before the deadline"))

    def _reveal(self) -> None:
        self._allowed = max(self.budget, self.granted)
        self.peak_granted = max(self.peak_granted, self.granted)

    def _fence(self, epoch: str) -> None:
        if epoch != self.epoch:
            raise StaleEpoch(f"epoch {epoch} has ended, this is {self.epoch}; join again")

    def _living(self, holder_id: str, epoch: str) -> Account:
        self._fence(epoch)
        account = self._accounts.get(holder_id)
        if account is None or account.dying:
            raise StaleEpoch(f"holder {holder_id} is not registered in epoch {epoch}; join again")
        return account
