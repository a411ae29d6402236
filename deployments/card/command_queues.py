"""Delivers commands to the processes of a card: each process waits for them in a call of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lightx2v.residency.lease import Command


class CommandQueues:
    """One waiting call per holder. `open_command` returns a holder's command until it is answered: a reply may be lost
    on its way, and then the next call fetches the command again."""

    def __init__(self, open_command: Callable[[str], Command | None]) -> None:
        self._open_command = open_command
        self._listening: dict[str, asyncio.Future[Command]] = {}

    def put(self, command: Command) -> None:
        """Answers the holder's waiting call. Without one, the command waits for a call."""
        if (listening := self._listening.pop(command.holder, None)) is not None and not listening.done():
            listening.set_result(command)

    async def next(self, holder_id: str) -> Command:
        """The open command of this holder, or the next one.

        Cancels the holder's earlier call: its caller is gone, and it would take the command of this one.
        """
        self.close(holder_id)
        if (command := self._open_command(holder_id)) is not None:
            return command
        listening: asyncio.Future[Command] = asyncio.get_running_loop().create_future()
        self._listening[holder_id] = listening
        return await listening

    def close(self, holder_id: str) -> None:
        """Cancels the waiting call of a holder that is gone."""
        if (listening := self._listening.pop(holder_id, None)) is not None:
            listening.cancel()
