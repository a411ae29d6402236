"""Videos that are being made and that were made.

They are in the memory of the ingress, which is one replica (`deployments.app`): all requests meet the same jobs, and
these end with its process. Who knows a job's id, which cannot be guessed, has it; there is no list.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Literal

from lightx2v.core import GenerateRequest, Progress, VideoSpec
from lightx2v.errors import Cancelled, LightError, VideoNotFound, VideoNotReady

Status = Literal["queued", "in_progress", "completed", "failed"]

KEEP_SECONDS = 3600.0
"""How long a job is known after its end."""
MAX_ENDED = 1000
MAX_NBYTES = 1 << 30
"""Of finished videos; 81 frames of 832x480 are 1 to 10 MB."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """One video; `task` makes its file. It runs until `ended_at`; this and `created_at` are seconds since the epoch."""

    id: str
    model: str
    request: GenerateRequest
    clip: VideoSpec
    created_at: float
    task: asyncio.Task[bytes]
    progress: Progress | None = None
    ended_at: float | None = None

    @property
    def status(self) -> Status:
        """In progress once its denoising has begun."""
        if self.ended_at is None:
            return "queued" if self.progress is None else "in_progress"
        return "completed" if self.error is None else "failed"

    @property
    def percent(self) -> int:
        """100 only when the file is there."""
        if self.status == "completed":
            return 100
        return min(99, round(100 * self.progress.step / self.progress.total)) if self.progress else 0

    @property
    def error(self) -> BaseException | None:
        """Why it failed."""
        if self.ended_at is None:
            return None
        return Cancelled("the video was cancelled") if self.task.cancelled() else self.task.exception()

    @property
    def expires_at(self) -> float | None:
        return None if self.ended_at is None else self.ended_at + KEEP_SECONDS

    @property
    def content(self) -> bytes:
        """The file. Raises VideoNotReady, or VideoNotFound if there will never be one."""
        if self.ended_at is None:
            raise VideoNotReady(f"{self.id} is {self.status}; ask again when its status is completed")
        if self.error is not None:
            raise VideoNotFound(f"there is no file of {self.id}: its status is failed")
        return self.task.result()

    @property
    def nbytes(self) -> int:
        return len(self.content) if self.status == "completed" else 0

    def advance(self, progress: Progress) -> None:
        """Never back, also where a stage that died begins anew."""
        if self.progress is None or progress.step > self.progress.step:
            self.progress = progress


def _let_go(task: asyncio.Task[bytes]) -> None:
    """Of the frames that its error has passed, and with them of pictures and references: it is kept for an hour."""
    with suppress(asyncio.CancelledError, Exception):
        task.result()  # a task holds on to the traceback of its error until it has raised it
    if not task.cancelled() and (error := task.exception()) is not None:
        error.__traceback__ = error.__cause__ = error.__context__ = None


class Jobs:
    """Those that run are bounded by their models' queues; those that ended in number, in bytes and in time, of which
    the oldest go first. `clock` gives seconds since the epoch."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._context = copy_context()

    def start(self, model: str, request: GenerateRequest, clip: VideoSpec, work: Coroutine[Any, Any, bytes]) -> Job:
        """Begins `work`, apart from the HTTP request that asks for it: Ray ends what a request calls with it, and tells
        whose call it is by the context."""
        task = asyncio.get_running_loop().create_task(work, context=self._context)
        job = Job(f"video_{secrets.token_hex(16)}", model, request, clip, self._clock(), task)
        task.add_done_callback(lambda _: self._end(job))
        self._jobs[job.id] = job
        return job

    def find(self, video_id: str) -> Job:
        """Raises VideoNotFound."""
        self._prune()
        if video_id not in self._jobs:
            raise VideoNotFound(f"there is no video {video_id[:80]!r}: it was deleted, has expired, or never was")
        return self._jobs[video_id]

    async def cancel(self, job: Job) -> None:
        """Returns when it has ended; one that had ended before stays as it is."""
        job.task.cancel()
        await asyncio.wait([job.task])

    async def forget(self, job: Job) -> None:
        """Forgets it; cancels it if it runs."""
        self._jobs.pop(job.id, None)
        await self.cancel(job)

    async def close(self) -> None:
        """Cancels all that run."""
        await asyncio.gather(*(self.cancel(job) for job in self._jobs.values()))

    def _end(self, job: Job) -> None:
        job.ended_at = self._clock()
        if job.error is None or isinstance(job.error, LightError):
            log.info("%s of request %s: %s", job.id, job.request.id, job.error or "completed")
        else:
            log.error("%s of request %s failed", job.id, job.request.id, exc_info=job.error)
        _let_go(job.task)
        self._prune()

    def _prune(self) -> None:
        """Forgets what has expired, and the oldest while those that ended are too many. The latest always stays."""
        ends = sorted(((job.expires_at, key) for key, job in self._jobs.items() if job.expires_at is not None))
        nbytes, left = sum(self._jobs[key].nbytes for _, key in ends), len(ends)
        for expires_at, key in ends:
            if expires_at > self._clock() and left <= MAX_ENDED and (nbytes <= MAX_NBYTES or left == 1):
                break
            nbytes, left = nbytes - self._jobs.pop(key).nbytes, left - 1
