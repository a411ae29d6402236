"""Watches for the death of processes, by the kernel, and for the release of their memory, by the card's driver."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine

from deployments.card.memory_probe import Probe

PROBE_SECONDS = 0.02
"""The interval of polling the driver while it still lists a dead process; it has no event for that."""

log = logging.getLogger(__name__)


class ProcessWatcher:
    """Watches the processes of this node on one card."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, pid: int, died: Callable[[], Coroutine[None, None, None]]) -> None:
        """Runs `died` in a task when the process ends. Raises ProcessLookupError if it is dead already."""
        descriptor = os.pidfd_open(pid)
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            task = loop.create_task(died())
            self._tasks.add(task)  # the loop holds only a weak reference
            task.add_done_callback(self._tasks.discard)

        loop.add_reader(descriptor, end)

    async def released(self, pid: int) -> None:
        """Returns when the driver no longer lists the process: only then is the memory of a dead process free."""
        while self._is_listed(pid):
            await asyncio.sleep(PROBE_SECONDS)

    def foreign_bytes(self, ours: set[int]) -> int:
        """Bytes on the card of processes other than `ours`. 0 if the driver does not answer, or lists the pids of
        another namespace."""
        try:
            used = self._probe.used()
        except OSError as error:
            log.warning("%s; counting no foreign processes", error)
            return 0
        visible = any(pid in used for pid in ours)
        return sum(nbytes for pid, nbytes in used.items() if pid not in ours) if visible else 0

    def _is_listed(self, pid: int) -> bool:
        """Whether the driver lists the process. True if the driver does not answer: the memory may still be in use."""
        try:
            return pid in self._probe.used()
        except OSError as error:
            log.warning("%s", error)
            return True
