"""Moves the weights of a stage to and from the device, for the coordinator's client."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Any

from deployments.card.transfer import TransferBytes
from lightx2v.stages.stage import Stage


class StageWeights:
    """The weights of one stage, moved in `thread`, where the stage runs as well. A run of the stage holds `lock`.

    `stage` is None until it is loaded; there are no weights on the device then.
    """

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self.lock = asyncio.Lock()
        self.stage: Stage[Any] | None = None

    async def drop(self, limit: int) -> int:
        """Keeps at most `limit` bytes of weights on the device; returns the bytes that are left."""
        async with self.lock:
            if self.stage is None:
                return 0
            return await asyncio.get_running_loop().run_in_executor(self._thread, self.stage.drop, limit)

    async def fetch(self, limit: int) -> int:
        """Fetches weights until there are at most `limit` bytes; returns the bytes there or on their way."""
        async with self.lock:
            if self.stage is None:
                return 0
            return await asyncio.get_running_loop().run_in_executor(self._thread, self.stage.fetch, limit)

    def transferred(self) -> TransferBytes:
        """The bytes that this process has copied so far."""
        if self.stage is None:
            return TransferBytes()
        return TransferBytes(self.stage.device.h2d_bytes, self.stage.device.d2h_bytes)
