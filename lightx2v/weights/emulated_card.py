"""A byte budget that plays a GPU's memory for the cpu device of all processes of a node.

As with a driver, an allocation beyond the budget fails, and the bytes of a process are free when it has ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from lightx2v.errors import OutOfMemory
from lightx2v.weights.file_lock import locked, private_file


class EmulatedCard:
    """Counts bytes per process in a locked file, which exists only while a process holds some. Linux only."""

    def __init__(self, name: str, budget: int) -> None:
        self.budget = budget
        self._path = private_file(f"{name}.json")
        self._me = str(_identity(os.getpid()))

    def take(self, nbytes: int) -> None:
        """Raises OutOfMemory, and takes nothing, if fewer than `nbytes` are free."""

        def change(held: dict[str, int]) -> None:
            used = sum(held.values())
            if used + nbytes > self.budget:
                raise OutOfMemory(
                    f"cpu card: {nbytes} bytes asked, {self.budget - used} of {self.budget} are free "
                    f"(held by process: {held})"
                )
            held[self._me] = held.get(self._me, 0) + nbytes

        self._update(change)

    def give(self, nbytes: int) -> None:
        """Returns bytes that this process took."""

        def change(held: dict[str, int]) -> None:
            held[self._me] -= nbytes
            if held[self._me] == 0:
                del held[self._me]

        self._update(change)

    def used(self) -> dict[int, int]:
        """Bytes that each live process holds, by pid."""
        seen: dict[int, int] = {}
        self._update(lambda held: seen.update({int(key.split(":")[0]): nbytes for key, nbytes in held.items()}))
        return seen

    def _update(self, change: Callable[[dict[str, int]], None]) -> None:
        with locked(self._path) as descriptor:
            held: dict[str, int] = json.loads(os.pread(descriptor, 1 << 20, 0) or b"{}")
            held = {key: nbytes for key, nbytes in held.items() if _identity(int(key.split(":")[0])) == key}
            try:
                change(held)
            finally:
                self._write(descriptor, held)

    def _write(self, descriptor: int, held: dict[str, int]) -> None:
        os.ftruncate(descriptor, 0)
        if held:
            os.pwrite(descriptor, json.dumps(held).encode(), 0)
        else:
            self._path.unlink()


def _identity(pid: int) -> str | None:
    """`pid:start time`, so that a reused pid is not taken for its predecessor; None if no such process runs."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, start = after_name[0], after_name[19]
    return None if state in "ZX" else f"{pid}:{start}"
