"""Results that are kept for a while in the memory of the ingress, so that clients can fetch them.

The ingress has one replica (`deployments.app`), and what it keeps ends with its process. An id is the only credential:
it cannot be guessed, and ids cannot be listed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

KEEP_SECONDS = 3600.0
"""The time for which a value is kept."""
MAX_COUNT = 1000
MAX_NBYTES = 1 << 30

Clock = Callable[[], float]
"""Gives unix seconds."""


def new_id(kind: str) -> str:
    """An id of a `kind` of results, with 128 random bits."""
    return f"{kind}_{secrets.token_hex(16)}"


class Kept(Generic[T]):
    """Values by id. They are bounded in number, bytes and time; the oldest are dropped first."""

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._values: dict[str, tuple[T, int, float]] = {}

    def add(self, key: str, value: T, nbytes: int) -> None:
        self._values[key] = (value, nbytes, self._clock() + KEEP_SECONDS)
        self._prune()

    def find(self, key: str) -> T | None:
        """The value of this id; None if it was dropped, has expired, or never was."""
        self._prune()
        value, *_ = self._values.get(key, (None,))
        return value

    def values(self) -> list[T]:
        """All values, the oldest first."""
        self._prune()
        return [value for value, *_ in self._values.values()]

    def drop(self, key: str) -> None:
        self._values.pop(key, None)

    def _prune(self) -> None:
        """Drops expired values, and the oldest beyond the limits. The latest always stays."""
        total = sum(nbytes for _, nbytes, _ in self._values.values())
        for key, (_, nbytes, expires_at) in list(self._values.items()):
            left = len(self._values)
            if expires_at > self._clock() and left <= MAX_COUNT and (total <= MAX_NBYTES or left == 1):
                break
            total -= nbytes
            del self._values[key]
