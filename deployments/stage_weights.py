"""The device weights of a stage, as the coordinator's client moves them."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Any

from deployments.moved import TransferBytes
from lightx2v.stages.stage import Stage


class StageWeights:
    """Moves the weights of `stage` in `thread`, in which it runs as well. Who runs it holds `lock` meanwhile."""

    def __init__(self, stage: Stage[Any], thread: Executor) -> None:
        self._stage, self._thread = stage, thread
        self.lock = asyncio.Lock()

    async def drop(self, limit: int) -> int:
        """Keeps at most `limit` bytes of weights on the device; returns what is left."""
        async with self.lock:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._stage.drop, limit)

    async def fetch(self, limit: int) -> int:
        """Brings weights until there are at most `limit` bytes; returns what is there or on its way."""
        async with self.lock:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._stage.fetch, limit)

    def transferred(self) -> TransferBytes:
        """What this process has copied so far."""
        return TransferBytes(self._stage.device.h2d_bytes, self._stage.device.d2h_bytes)
