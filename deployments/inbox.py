"""What the processes of a card are told to do, each by a call of its own that waits for it."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from lightx2v.residency.lease import Fetch, Shrink

Order = Shrink | Fetch


class Inbox:
    """Orders by the ids of the holders that they are for."""

    def __init__(self) -> None:
        self._orders: defaultdict[str, asyncio.Queue[Order]] = defaultdict(asyncio.Queue)
        self._listening: dict[str, asyncio.Future[Order]] = {}

    def put(self, order: Order) -> None:
        self._orders[order.holder].put_nowait(order)

    async def next(self, holder_id: str) -> Order:
        """Waits for an order. Ends the call before this one: its caller is gone, and it would take what this one waits
        for."""
        self._hang_up(holder_id)
        self._listening[holder_id] = order = asyncio.ensure_future(self._orders[holder_id].get())
        return await order

    def close(self, holder_id: str) -> None:
        """It is gone, and so is whoever listened for it."""
        self._orders.pop(holder_id, None)
        self._hang_up(holder_id)

    def _hang_up(self, holder_id: str) -> None:
        if (listening := self._listening.pop(holder_id, None)) is not None:
            listening.cancel()
