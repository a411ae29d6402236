"""What the processes of a card are told to do, each by a call of its own that waits for it."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from lightx2v.residency.lease import Fetch, Shrink

Command = Shrink | Fetch


class Inbox:
    """Commands by the ids of the holders that they are for."""

    def __init__(self) -> None:
        self._commands: defaultdict[str, asyncio.Queue[Command]] = defaultdict(asyncio.Queue)
        self._listening: dict[str, asyncio.Future[Command]] = {}

    def put(self, command: Command) -> None:
        self._commands[command.holder].put_nowait(command)

    async def next(self, holder_id: str) -> Command:
        """Waits for a command. Ends the call before this one: its caller is gone, and it would take what this one waits
        for."""
        self._hang_up(holder_id)
        self._listening[holder_id] = command = asyncio.ensure_future(self._commands[holder_id].get())
        return await command

    def close(self, holder_id: str) -> None:
        """It is gone, and so is whoever listened for it."""
        self._commands.pop(holder_id, None)
        self._hang_up(holder_id)

    def _hang_up(self, holder_id: str) -> None:
        if (listening := self._listening.pop(holder_id, None)) is not None:
            listening.cancel()
