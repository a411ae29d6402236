"""Who waits for which lease."""

from __future__ import annotations

import asyncio

from lightx2v.errors import LightError
from lightx2v.residency.lease import Lease


class Tickets:
    """One per process at most: it has one run at a time. What nobody waits for any more is told to nobody."""

    def __init__(self) -> None:
        self._outcomes: dict[str, asyncio.Future[Lease]] = {}
        self._asked: dict[str, str] = {}

    async def outcome(self, ticket: str) -> Lease:
        """Waits for the lease, or raises what it was refused for."""
        try:
            return await self._outcomes[ticket]
        finally:
            del self._outcomes[ticket]

    def open(self, ticket: str, holder_id: str) -> None:
        self._outcomes[ticket] = asyncio.get_running_loop().create_future()
        self._asked[holder_id] = ticket

    def grant(self, ticket: str, lease: Lease) -> None:
        if (outcome := self._open(ticket)) is not None:
            outcome.set_result(lease)

    def refuse(self, ticket: str, error: LightError) -> None:
        if (outcome := self._open(ticket)) is not None:
            outcome.set_exception(error)

    def forget(self, holder_id: str) -> str | None:
        """What it asked for last; it may be over."""
        return self._asked.pop(holder_id, None)

    def _open(self, ticket: str) -> asyncio.Future[Lease] | None:
        outcome = self._outcomes.get(ticket)
        return None if outcome is None or outcome.done() else outcome
