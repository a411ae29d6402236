"""An allocator of offsets in a ring of bytes. It holds no memory itself."""

from __future__ import annotations


class RingAllocator:
    """Allocates stretches of `nbytes` bytes and frees them in the same order. No stretch lies across the end."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._head = self._tail = 0

    @property
    def mark(self) -> int:
        """The end of the last stretch. Marks only grow: they do not begin again where offsets do."""
        return self._head

    def take(self, nbytes: int) -> int | None:
        """The offset of a new stretch of `nbytes` bytes; None while there is no room for it."""
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
        """Frees all stretches up to `mark`."""
        self._tail = mark
