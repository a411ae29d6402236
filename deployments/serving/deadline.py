"""The deadline of a request. It covers all work, from decoding the references to encoding the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lightx2v.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time, `seconds` after a request was admitted; `end` is in monotonic seconds."""

    seconds: float
    end: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(seconds, time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """The seconds that are left; negative once the deadline has passed."""
        return self.end - time.monotonic()

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Cancels the body when the deadline passes, and raises DeadlineExceeded; also if the body has ended too late,
        because the loop was busy."""
        late = DeadlineExceeded(f"not made within {self.seconds:g} s")
        try:
            async with asyncio.timeout(self.left) as timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise late from None
        if self.left < 0:
            raise late
