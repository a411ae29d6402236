"""The entries of the ledger: an account for each holder with its open command, and a ticket for each waiter."""

from __future__ import annotations

from dataclasses import dataclass

from lightx2v.residency.lease import Command, Fetch, Holder, Lease, Need, Recall, Shrink, Wish, Work


class IntegrityError(AssertionError):
    """The accounts contradict each other, or a holder holds what it was not granted."""


@dataclass(slots=True)
class Pending:
    """A command whose answer is `due` at that monotonic second, and overdue after it."""

    command: Shrink | Fetch
    due: float
    overdue: bool = False
    answered: bool = False
    """The holder reported, but still holds more than it was told to."""

    @property
    def grows(self) -> bool:
        """Whether it allows more weights, rather than asking for some."""
        return isinstance(self.command, Fetch)

    def is_answered_by(self, command_id: str | None) -> bool:
        """Whether a report answers this command, or nobody asked for it and it takes nothing from what is fetched."""
        return not self.grows if command_id is None else self.command.id == command_id


@dataclass(slots=True)
class Run:
    """What the gate knows of a run."""

    began: float
    """Monotonic seconds at which it was granted."""
    work: Work
    """What is left of it."""
    crowd: int = 1
    """The most jobs that waited or ran at its holder at once."""
    recall: Recall | None = None
    is_outgrown: bool = False
    """Whether more wait than run together under its lease, and a lease for as many would let more of them run."""

    def tell(self, work: Work) -> None:
        """Replaces what is left."""
        self.work, self.crowd = work, max(self.crowd, work.jobs)


@dataclass(slots=True)
class Account:
    """The memory of one holder. Its weights count in full from the grant until it reports that it holds less."""

    holder: Holder
    weights: int
    used: int
    """Turn of the last grant or release; orders holders by recency."""
    lease: Lease | None = None
    before: int = 0
    """Weights held when the lease was granted."""
    run: Run | None = None
    """None without a lease, and for a lease of another ledger."""
    pending: Pending | None = None
    wish: Wish | None = None
    offered: int = 0
    """The most bytes that it was allowed to fetch since it last ran or gave way."""
    dying: bool = False

    @property
    def active(self) -> bool:
        """Whether a run has its lease."""
        return self.lease is not None

    @property
    def idle(self) -> bool:
        """Whether the holder can be given a command."""
        return not (self.active or self.dying or self.pending)

    @property
    def command(self) -> Command | None:
        """The command that the holder is to carry out now; the same until it has answered."""
        if self.active:
            return self.run.recall if self.run else None
        return self.pending.command if self.pending and not self.pending.answered else None

    @property
    def extra_bytes(self) -> int:
        """Bytes that the running lease takes besides weights; 0 without one."""
        return self.lease.extra_bytes if self.lease else 0

    @property
    def nbytes(self) -> int:
        """All that the holder counts for."""
        return self.holder.context + self.weights + self.extra_bytes

    @property
    def is_unresponsive(self) -> bool:
        """Whether the answer to a command is overdue."""
        return self.pending is not None and self.pending.overdue

    @property
    def is_stuck(self) -> bool:
        """Whether the holder was told to give way and does not. One whose fetch takes long does not ignore anything."""
        return self.pending is not None and self.is_unresponsive and not self.pending.grows

    @property
    def returning(self) -> int:
        """Bytes that will come back without another command."""
        if self.dying or self.is_unresponsive:
            return 0
        commanded = max(0, self.weights - self.pending.command.weights) if self.pending else 0
        return self.lease.returns if self.lease else commanded

    def settle(self, weights: int, limit: int) -> None:
        """Takes what the holder reports that it holds. Raises IntegrityError if that is more than `limit`."""
        self.weights = weights
        if not 0 <= weights <= limit:
            raise IntegrityError(f"{self.holder} holds {weights} bytes of weights, granted were {limit}")

    def could_use(self, weights: int) -> bool:
        """Whether an offer of `weights` exceeds what the holder has, and what it was offered in vain."""
        return self.pending is None and weights > max(self.weights, self.offered)


@dataclass(slots=True)
class Ticket:
    """A request for memory that waits."""

    id: str
    holder: Holder
    need: Need
    work: Work
    """The latest that its holder told."""
    turn: int
    deadline: float
    """Monotonic seconds, after which it is refused."""
    since: float | None = None
    """Monotonic seconds at which the ledger first looked at it."""
    is_begun: bool = False
    """Whether somebody was told to make room for it: then it goes next."""

    @property
    def rank(self) -> tuple[float, int]:
        """The age of its oldest job; of two equal ones, who asked first."""
        return self.work.admitted_at, self.turn
