"""The device weights of a stage, as the coordinator's client moves them."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Any

from deployments.card.transfer import TransferBytes
from lightx2v.stages.stage import Stage


class StageWeights:
    """Moves the weights of a stage in `thread`, in which the stage runs as well. Whoever runs it holds `lock`.

    While `stage` is None it is still being loaded, and has no weights on the device.
    """

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self.lock = asyncio.Lock()
        self.stage: Stage[Any] | None = None

    async def drop(self, limit: int) -> int:
        """Keeps at most `limit` bytes of weights on the device; returns what is left."""
        async with self.lock:
            if self.stage is None:
                return 0
            return await asyncio.get_running_loop().run_in_executor(self._thread, self.stage.drop, limit)

    async def fetch(self, limit: int) -> int:
        """Brings weights until there are at most `limit` bytes; returns what is there or on its way."""
        async with self.lock:
            if self.stage is None:
                return 0
            return await asyncio.get_running_loop().run_in_executor(self._thread, self.stage.fetch, limit)

    def transferred(self) -> TransferBytes:
        """What this process has copied so far."""
        if self.stage is None:
            return TransferBytes()
        return TransferBytes(self.stage.device.h2d_bytes, self.stage.device.d2h_bytes)
