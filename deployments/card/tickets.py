"""The processes that wait for a lease."""

from __future__ import annotations

import asyncio

from lightx2v.errors import LightError
from lightx2v.residency.lease import Lease


class Tickets:
    """The open requests for a lease, one per process at most: a process has one run at a time.

    Outcomes whose waiter has gone are dropped.
    """

    def __init__(self) -> None:
        self._outcomes: dict[str, asyncio.Future[Lease]] = {}
        self._asked: dict[str, str] = {}

    async def outcome(self, ticket: str) -> Lease:
        """Waits for the lease. Raises the error for which it was refused."""
        try:
            return await self._outcomes[ticket]
        finally:
            del self._outcomes[ticket]

    def open(self, ticket: str, holder_id: str) -> None:
        """Registers a holder's ticket, before `outcome` waits for it."""
        self._outcomes[ticket] = asyncio.get_running_loop().create_future()
        self._asked[holder_id] = ticket

    def grant(self, ticket: str, lease: Lease) -> None:
        """Ends the wait with the lease."""
        if (outcome := self._open(ticket)) is not None:
            outcome.set_result(lease)

    def refuse(self, ticket: str, error: LightError) -> None:
        """Ends the wait with an error."""
        if (outcome := self._open(ticket)) is not None:
            outcome.set_exception(error)

    def forget(self, holder_id: str) -> str | None:
        """The ticket that the holder opened last, which may be over; None if it has none."""
        return self._asked.pop(holder_id, None)

    def _open(self, ticket: str) -> asyncio.Future[Lease] | None:
        outcome = self._outcomes.get(ticket)
        return None if outcome is None or outcome.done() else outcome
