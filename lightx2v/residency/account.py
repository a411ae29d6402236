"""What the ledger writes down: an account per holder, an order per holder that is to give way, a ticket per waiter."""

from __future__ import annotations

from dataclasses import dataclass

from lightx2v.residency.lease import Holder, Lease, Need, Wish


@dataclass(slots=True)
class Order:
    """A holder has been asked to come down to `to` bytes of weights, or allowed to come up to them; past `due` it is
    overdue."""

    id: str
    to: int
    due: float
    overdue: bool = False
    grows: bool = False


@dataclass(slots=True)
class Account:
    """What one holder has. Its weights count in full from the grant until it reports that it holds less."""

    holder: Holder
    weights: int
    used: int
    """Turn of the last grant or release; orders holders by recency."""
    lease: Lease | None = None
    before: int = 0
    """Weights held when the lease was granted."""
    order: Order | None = None
    wish: Wish | None = None
    offered: int = 0
    """The most it was allowed to fetch since it last ran or gave way."""
    dying: bool = False

    @property
    def active(self) -> bool:
        return self.lease is not None

    @property
    def idle(self) -> bool:
        """Whether it can be told something."""
        return not (self.active or self.dying or self.order)

    @property
    def workspace(self) -> int:
        return self.lease.workspace if self.lease else 0

    @property
    def nbytes(self) -> int:
        return self.holder.context + self.weights + self.workspace

    @property
    def deaf(self) -> bool:
        return self.order is not None and self.order.overdue

    @property
    def ignores(self) -> bool:
        """Whether it was told to give way and does not. A fetch that takes long is none of that."""
        return self.order is not None and self.deaf and not self.order.grows

    @property
    def returning(self) -> int:
        """Bytes that come back without being asked for again."""
        if self.dying or self.deaf:
            return 0
        ordered = max(0, self.weights - self.order.to) if self.order else 0
        return self.lease.returns if self.lease else ordered

    def could_use(self, weights: int) -> bool:
        """Whether an offer of so many bytes would be more than it has, and than it has been offered in vain."""
        return self.order is None and weights > max(self.weights, self.offered)


@dataclass(frozen=True, slots=True)
class Ticket:
    id: str
    holder: str
    need: Need
    rank: tuple[float, int]
    deadline: float
