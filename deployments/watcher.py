"""Deaths of processes: when the kernel says so, and when the driver of the card has let go of their memory."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine

from deployments.probes import Probe

PROBE_SECONDS = 0.02
"""Between two looks at the driver while a dead process is still listed there; it has no event for that."""

log = logging.getLogger(__name__)


class ProcessWatcher:
    """Watches processes of this node on one card."""

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
            self._tasks.add(task)  # the loop alone would forget it
            task.add_done_callback(self._tasks.discard)

        loop.add_reader(descriptor, end)

    async def released(self, pid: int) -> None:
        """Returns when the driver no longer lists the process: its memory is free then, not when it has died."""
        while self._is_listed(pid):
            await asyncio.sleep(PROBE_SECONDS)

    def foreign_bytes(self, ours: set[int]) -> int:
        """Bytes on the card of processes other than `ours`. 0 while the driver does not answer, and where it lists
        the pids of another namespace than this one's."""
        try:
            used = self._probe.used()
        except OSError as error:
            log.warning("%s; counting nobody else", error)
            return 0
        visible = any(pid in used for pid in ours)
        return sum(nbytes for pid, nbytes in used.items() if pid not in ours) if visible else 0

    def _is_listed(self, pid: int) -> bool:
        """True also while the driver does not answer: bytes return only when it says so."""
        try:
            return pid in self._probe.used()
        except OSError as error:
            log.warning("%s", error)
            return True
