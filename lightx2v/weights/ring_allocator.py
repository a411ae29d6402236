"""Room in a circular stretch of bytes. Pure offsets."""

from __future__ import annotations


class RingAllocator:
    """Gives out offsets, and takes them back in the same order. What is given out never lies across the end."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._head = self._tail = 0

    @property
    def mark(self) -> int:
        """Where what was given out last ends. Marks only grow: they count on where offsets begin again."""
        return self._head

    def take(self, nbytes: int) -> int | None:
        """Where so many bytes begin; None while too many are given out."""
        if self._head == self._tail:
            self._head = self._tail = -(-self._head // self.nbytes) * self.nbytes
        start = self._head % self.nbytes
        skipped = self.nbytes - start if start + nbytes > self.nbytes else 0
        end = self._head + skipped + nbytes
        if end - self._tail > self.nbytes:
            return None
        self._head = end
        return (end - nbytes) % self.nbytes

    def give(self, mark: int) -> None:
        """Takes back all that was given out until `mark`."""
        self._tail = mark
