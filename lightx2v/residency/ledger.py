"""Every byte of one GPU, by owner. The ledger decides; who drives it carries out what `advance` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from types import MappingProxyType

from lightx2v.errors import DeadlineExceeded, OutOfMemory, StaleEpoch
from lightx2v.residency.account import Account, Pending, Ticket
from lightx2v.residency.eviction import evictions
from lightx2v.residency.lease import Command, Event, Fetch, Granted, Holder, Lease, Need, Refused, Shrink, Wish
from lightx2v.residency.prefetch import offers


class IntegrityError(AssertionError):
    """The accounts contradict each other, or a holder holds what it was not granted."""


class Ledger:
    """Grants memory to the oldest request first, and takes it from the holder that needs it last.

    Times are monotonic seconds and come from the caller. Weights at rest stay granted until their holder reports them
    dropped; those of a dead process until it is gone. `epoch` fences: what was agreed with another ledger is refused.
    """

    def __init__(self, budget: int, epoch: str, *, opens_at: float = 0.0, patience: float = 10.0) -> None:
        self.budget = budget
        self.epoch = epoch
        self.opens_at = opens_at
        self.patience = patience
        self.peak_granted = 0
        self.grants_total = 0
        self.shrinks_total = 0
        self.evictions_total = 0
        self.fetches_total = 0
        self._accounts: dict[str, Account] = {}
        self._waiting: dict[str, Ticket] = {}
        self._last: Holder | None = None
        self._turn = count(1)
        self._open = False
        self._allowed = max(budget, 0)

    @property
    def granted(self) -> int:
        """Bytes that somebody has: processes, weights, and what runs take besides."""
        return sum(account.nbytes for account in self._accounts.values())

    @property
    def free(self) -> int:
        """Bytes that nobody has. Negative while a join or a smaller budget has revealed too much."""
        return self.budget - self.granted

    @property
    def waiting(self) -> int:
        """Open tickets."""
        return len(self._waiting)

    @property
    def holders(self) -> Mapping[str, Account]:
        """Accounts by the ids of their holders."""
        return MappingProxyType(self._accounts)

    def join(self, holder: Holder, weights: int = 0, lease: Lease | None = None) -> None:
        """Register a process, with what it holds if a previous ledger granted it that. Known ids change nothing."""
        if holder.id in self._accounts:
            return
        held = max(weights, lease.weights) if lease else weights
        self._accounts[holder.id] = Account(holder, held, next(self._turn), lease, before=weights)
        self._reveal()

    def resize(self, budget: int) -> None:
        """Sets the budget anew: other users of the card took memory or gave it back."""
        self.budget = budget
        self._reveal()

    def weigh(self, holder: Holder) -> None:
        """Replaces a holder by itself with another context, by a later measurement."""
        self._accounts[holder.id].holder = holder
        self._reveal()

    def expect(self, holder_id: str, wish: Wish | None) -> None:
        """Sets what the holder is to have before its next run, as far as memory is free; None: nothing."""
        account = self._accounts[holder_id]
        account.wish, account.offered = wish, 0

    def request(self, holder_id: str, need: Need, admitted_at: float, deadline: float, epoch: str) -> str:
        """A ticket, which is also the id of the lease to come. `admitted_at`: unix seconds of the user's request.

        Whoever asks to run has heard of no overdue command, so that lapses: else a lost answer would lock it out.
        """
        account = self._living(holder_id, epoch)
        self._require(account, need)
        if account.is_unresponsive:
            account.pending = None
        turn = next(self._turn)
        ticket = Ticket(f"{self.epoch}:{turn}", holder_id, need, (admitted_at, turn), deadline)
        self._waiting[ticket.id] = ticket
        return ticket.id

    def release(self, lease_id: str, weights: int, epoch: str) -> None:
        """The run ended, and the holder holds `weights` now. An unknown lease is one that has been returned already."""
        self._fence(epoch)
        account = self._leased(lease_id)
        if account is not None and account.lease is not None:
            limit, account.lease, account.used = account.lease.weights, None, next(self._turn)
            self._settle(account, weights, limit)

    def resized(self, holder_id: str, weights: int, epoch: str, command_id: str | None = None) -> None:
        """An idle holder dropped or fetched weights and holds `weights` now. The answer to a command that has lapsed,
        or has been answered, is ignored."""
        account = self._living(holder_id, epoch)
        pending = account.pending
        if account.active or not _answers(command_id, pending):
            return
        if pending is not None:
            pending.answered = command_id is not None
        if pending is not None and weights <= pending.command.weights:
            account.pending = None
            self.shrinks_total += not pending.grows
            self.evictions_total += weights == 0 and not pending.grows
        self._settle(account, weights, account.weights)

    def cancel(self, ticket_id: str, epoch: str) -> None:
        """The caller went away: its ticket is void, and a lease that it was granted meanwhile counts as unused."""
        self._fence(epoch)
        self._waiting.pop(ticket_id, None)
        account = self._leased(ticket_id)
        if account is not None:
            self.release(ticket_id, account.before, epoch)

    def dead(self, holder_id: str) -> list[str]:
        """Its process died. Its bytes stay counted; its tickets are void and returned."""
        account = self._accounts.get(holder_id)
        if account is None:
            return []
        account.dying, account.pending = True, None
        dropped = [ticket.id for ticket in self._waiting.values() if ticket.holder == holder_id]
        for ticket_id in dropped:
            del self._waiting[ticket_id]
        return dropped

    def gone(self, holder_id: str) -> list[str]:
        """The driver no longer lists its process: its bytes are free. Returns tickets as `dead` does."""
        dropped = self.dead(holder_id)
        self._accounts.pop(holder_id, None)
        return dropped

    def advance(self, now: float) -> list[Event]:
        """The events to carry out now. Call it after any change, and at `next_deadline()`."""
        self._allowed = min(self._allowed, max(self.budget, self.granted))
        self._open = now >= self.opens_at
        self._note_overdue(now)
        events: list[Event] = [*self._expire(now)]
        while self._open and self._waiting:
            ticket = min(self._waiting.values(), key=lambda ticket: ticket.rank)
            events += self._serve(ticket, now)
            if ticket.id in self._waiting:
                break
        if self._open and not self._waiting and self._last is not None:
            events += self._fetch(self._last, now)
        return events

    def next_deadline(self) -> float | None:
        """When `advance` has something to do even if nothing else happens."""
        times = [ticket.deadline for ticket in self._waiting.values()]
        commands = [account.pending for account in self._accounts.values() if account.pending]
        times += [command.due for command in commands if not command.overdue]
        if self._waiting and not self._open:
            times.append(self.opens_at)
        return min(times, default=None)

    def check(self) -> None:
        """Raise IntegrityError if an invariant is broken."""
        if self.granted > self._allowed:
            raise IntegrityError(f"{self.granted} bytes are granted of {self._allowed}")
        for account in self._accounts.values():
            if not 0 <= account.weights <= account.holder.reachable:
                raise IntegrityError(f"{account.holder} holds {account.weights} of {account.holder.reachable} bytes")
            if account.lease is not None and account.weights < account.lease.weights:
                raise IntegrityError(f"{account.holder} runs with more than the {account.weights} bytes counted")
        for ticket in self._waiting.values():
            if ticket.holder not in self._accounts or self._accounts[ticket.holder].dying:
                raise IntegrityError(f"ticket {ticket.id} waits for {ticket.holder}, which is dead")

    def _serve(self, ticket: Ticket, now: float) -> list[Event]:
        try:
            return self._grant_or_ask(ticket, self._accounts[ticket.holder], now)
        except OutOfMemory as error:
            del self._waiting[ticket.id]
            return [Refused(ticket.id, error)]

    def _grant_or_ask(self, ticket: Ticket, account: Account, now: float) -> list[Event]:
        if account.active:
            return []
        unresponsive = [other for other in self._accounts.values() if other.is_unresponsive and other is not account]
        weights = ticket.need.fit(self._room(unresponsive), account.holder.reachable)
        if weights is None or account.is_stuck:
            self._require(account, ticket.need)
            self._require_responses(account, ticket.need, unresponsive)
            return []
        extra_bytes = ticket.need.grant(weights, account.holder.reachable).extra_bytes
        lacking = max(0, weights - account.weights) + extra_bytes - self.free
        if account.pending is None and account.weights <= weights and lacking <= 0:
            return [self._grant(ticket, account, weights)]
        return [*self._ask(account, weights, lacking, now)]

    def _grant(self, ticket: Ticket, account: Account, weights: int) -> Granted:
        grant = ticket.need.grant(weights, account.holder.reachable)
        account.lease = Lease(
            grant.weights,
            grant.activation_bytes,
            grant.slot_bytes,
            grant.keep,
            ticket.id,
            ticket.holder,
            width=grant.width,
        )
        account.before, account.weights, account.used = account.weights, weights, next(self._turn)
        account.offered, self._last = 0, account.holder
        del self._waiting[ticket.id]
        self.grants_total += 1
        self.peak_granted = max(self.peak_granted, self.granted)
        return Granted(ticket.id, account.lease)

    def _ask(self, account: Account, weights: int, lacking: int, now: float) -> Iterator[Command]:
        """Commands for what neither running leases nor earlier commands will bring back."""
        if account.pending is None and account.weights > weights:
            yield self._shrink(account, account.weights - weights, now)
        lacking -= sum(other.returning for other in self._accounts.values())
        for holder_id, nbytes in evictions(self._accounts.values(), account, lacking).items():
            yield self._shrink(self._accounts[holder_id], nbytes, now)

    def _shrink(self, account: Account, nbytes: int, now: float) -> Command:
        account.offered = 0
        return self._command(account, Shrink(account.holder.id, account.weights - nbytes, self._next_id()), now)

    def _fetch(self, last: Holder, now: float) -> Iterator[Command]:
        """Offers free memory to the stages that run next, while nobody waits. It counts as held from now on."""
        for account, to in list(offers(self._accounts.values(), last, self.free)):
            account.weights = account.offered = to
            self.fetches_total += 1
            self.peak_granted = max(self.peak_granted, self.granted)
            yield self._command(account, Fetch(account.holder.id, to, self._next_id()), now)

    def _command(self, account: Account, command: Command, now: float) -> Command:
        account.pending = Pending(command, now + self.patience)
        return command

    def _next_id(self) -> str:
        return f"{self.epoch}:{next(self._turn)}"

    def _room(self, unresponsive: Sequence[Account] = ()) -> int:
        """Bytes that one holder can have if all others drop their weights, except the dead and the `unresponsive`."""
        held = sum(a.nbytes if a.dying else a.holder.context for a in self._accounts.values())
        return self.budget - held - sum(account.weights for account in unresponsive)

    def _require(self, account: Account, need: Need) -> None:
        """Refuse what would not fit even with everyone else evicted and the dead gone."""
        contexts = sum(other.holder.context for other in self._accounts.values() if not other.dying)
        if need.fit(self.budget - contexts, account.holder.reachable) is None:
            raise OutOfMemory(
                f"{account.holder} needs at least {need.least(account.holder.reachable)} bytes; "
                f"the budget of {self.budget} bytes, less {contexts} for the processes, leaves {self.budget - contexts}"
            )

    def _require_responses(self, account: Account, need: Need, unresponsive: Sequence[Account]) -> None:
        """Refuse what would fit only if holders gave way that do not answer."""
        if account.is_stuck or (unresponsive and need.fit(self._room(), account.holder.reachable) is not None):
            other = account if account.is_stuck else max(unresponsive, key=lambda other: other.weights)
            raise OutOfMemory(
                f"{account.holder} needs at least {need.least(account.holder.reachable)} bytes, "
                f"but {other.holder} holds {other.weights} and did not give way within {self.patience} s"
            )

    def _note_overdue(self, now: float) -> None:
        for account in self._accounts.values():
            if account.pending is not None and account.pending.due <= now:
                account.pending.overdue = True

    def _expire(self, now: float) -> Iterator[Refused]:
        for ticket in [ticket for ticket in self._waiting.values() if ticket.deadline <= now]:
            del self._waiting[ticket.id]
            holder = self._accounts[ticket.holder].holder
            yield Refused(ticket.id, DeadlineExceeded(f"{holder} got no device memory before the deadline"))

    def _reveal(self) -> None:
        self._allowed = max(self.budget, self.granted)
        self.peak_granted = max(self.peak_granted, self.granted)

    def _settle(self, account: Account, weights: int, limit: int) -> None:
        account.weights = weights
        if not 0 <= weights <= limit:
            raise IntegrityError(f"{account.holder} holds {weights} bytes of weights, granted were {limit}")

    def _fence(self, epoch: str) -> None:
        if epoch != self.epoch:
            raise StaleEpoch(f"epoch {epoch} has ended, this is {self.epoch}; join again")

    def _living(self, holder_id: str, epoch: str) -> Account:
        self._fence(epoch)
        account = self._accounts.get(holder_id)
        if account is None or account.dying:
            raise StaleEpoch(f"holder {holder_id} is not registered in epoch {epoch}; join again")
        return account

    def _leased(self, lease_id: str) -> Account | None:
        living = (account for account in self._accounts.values() if not account.dying)
        return next((account for account in living if account.lease and account.lease.id == lease_id), None)


def _answers(command_id: str | None, pending: Pending | None) -> bool:
    """Whether a report is of now: one that nobody asked for may precede what the holder is about to fetch."""
    if command_id is None:
        return pending is None or not pending.grows
    return pending is not None and pending.command.id == command_id
