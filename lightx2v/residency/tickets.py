"""The tickets that are open."""

from __future__ import annotations

from lightx2v.residency.account import Ticket
from lightx2v.residency.lease import Need, Work


class Tickets(dict[str, Ticket]):
    """Those that wait, by their ids."""

    def add(self, ticket: Ticket) -> None:
        """Opens a ticket."""
        self[ticket.id] = ticket

    def of(self, holder_id: str) -> list[Ticket]:
        """A holder's tickets."""
        return [ticket for ticket in self.values() if ticket.holder.id == holder_id]

    def tell(self, holder_id: str, work: Work, need: Need | None = None) -> None:
        """Replaces the work of a holder's tickets, and their need."""
        for ticket in self.of(holder_id):
            ticket.work, ticket.need = work, need or ticket.need

    def drop(self, holder_id: str) -> list[str]:
        """Closes a holder's tickets, and returns their ids."""
        dropped = [ticket.id for ticket in self.of(holder_id)]
        for ticket_id in dropped:
            del self[ticket_id]
        return dropped

    def look(self, now: float) -> None:
        """Begins the wait of those that are new."""
        for ticket in self.values():
            ticket.since = now if ticket.since is None else ticket.since

    def expire(self, now: float) -> list[Ticket]:
        """Closes and returns those whose deadline has passed."""
        expired = [ticket for ticket in self.values() if ticket.deadline <= now]
        for ticket in expired:
            del self[ticket.id]
        return expired
