"""Jobs: pictures and videos that are being made while their callers do not wait, and finished ones.

Running jobs live in the memory of the ingress too, and end with its process. A job's id is its only credential.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Literal

from deployments.http.kept import KEEP_SECONDS, Clock, Kept, new_id
from deployments.serving.admission import Place
from lightx2v.errors import Cancelled, LightError, TaskNotFound, TaskNotReady, VideoNotFound, VideoNotReady
from lightx2v.media.encode import FORMATS
from lightx2v.models.notices import Notice
from lightx2v.types import GenerateRequest, Progress, VideoSpec

Status = Literal["queued", "in_progress", "completed", "failed"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kind:
    """The API that a job belongs to. `name` begins its id; the job's caller sees the two errors."""

    name: str
    not_found: type[LightError]
    not_ready: type[LightError]


VIDEO = Kind("video", VideoNotFound, VideoNotReady)
TASK = Kind("task", TaskNotFound, TaskNotReady)


@dataclass(slots=True, eq=False)
class Job:
    """One picture or video; `task` makes its file. `video` is None for a picture. `created_at` and `ended_at` are unix
    seconds; the latter is None while the job runs."""

    id: str
    kind: Kind
    model: str
    request: GenerateRequest
    video: VideoSpec | None
    created_at: float
    task: asyncio.Task[bytes]
    notices: tuple[Notice, ...] = ()
    place: Place | None = None
    progress: Progress | None = None
    ended_at: float | None = None

    @property
    def status(self) -> Status:
        """OpenAI's status; a job is in progress once its denoising has begun."""
        if self.ended_at is None:
            return "queued" if self.progress is None else "in_progress"
        return "completed" if self.error is None else "failed"

    @property
    def percent(self) -> int:
        """Progress from 0 to 100; 100 only once the file exists."""
        if self.status == "completed":
            return 100
        return min(99, round(100 * self.progress.step / self.progress.total)) if self.progress else 0

    @property
    def error(self) -> BaseException | None:
        """Why the job failed; None if it runs or has completed."""
        if self.ended_at is None:
            return None
        return Cancelled(f"the {self.kind.name} was cancelled") if self.task.cancelled() else self.task.exception()

    @property
    def position(self) -> int | None:
        """The number of requests that go before it; None once it has ended."""
        return self.place.position if self.place and self.ended_at is None else None

    @property
    def predicted_seconds(self) -> float | None:
        """The predicted seconds until its end; None once it has ended, or if nothing is known of its model yet."""
        seconds = self.place.seconds if self.place and self.ended_at is None else None
        return None if seconds is None else round(seconds, 1)

    @property
    def expires_at(self) -> float | None:
        return None if self.ended_at is None else self.ended_at + KEEP_SECONDS

    @property
    def media_type(self) -> str:
        """The media type of the file."""
        return FORMATS["mp4" if self.video else "png"].media_type

    @property
    def seconds(self) -> float:
        """The duration of a video; 0 for a picture."""
        return self.video.seconds_of(self.request.frames) if self.video else 0.0

    @property
    def content(self) -> bytes:
        """The file. Raises the kind's `not_ready`, or its `not_found` if the job failed."""
        if self.ended_at is None:
            raise self.kind.not_ready(f"{self.id} is {self.status}; ask again when its status is completed")
        if self.error is not None:
            raise self.kind.not_found(f"there is no file of {self.id}: it failed or was cancelled")
        return self.task.result()

    @property
    def nbytes(self) -> int:
        return len(self.content) if self.status == "completed" else 0

    def advance(self, progress: Progress) -> None:
        """Notes later progress. It never goes back, even if a stage died and starts anew."""
        if self.progress is None or progress.step > self.progress.step:
            self.progress = progress


def _let_go(task: asyncio.Task[bytes]) -> None:
    """Drops the traceback of a failed task. The job is kept for an hour, and its frames would keep pictures as long."""
    with suppress(asyncio.CancelledError, Exception):
        task.result()  # a task keeps the traceback of its error until it has raised it
    if not task.cancelled() and (error := task.exception()) is not None:
        error.__traceback__ = error.__cause__ = error.__context__ = None


class Jobs:
    """The jobs of an application. The models' queues bound the running ones; ended ones are kept for a while."""

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._running: dict[str, Job] = {}
        self._ended = Kept[Job](clock)
        self._context = copy_context()

    def start(
        self,
        kind: Kind,
        model: str,
        request: GenerateRequest,
        video: VideoSpec | None,
        work: Coroutine[Any, Any, bytes],
        notices: tuple[Notice, ...] = (),
        place: Place | None = None,
    ) -> Job:
        """Starts `work` outside the context of the HTTP request: Ray cancels the calls made in a request's context when
        that request ends."""
        task = asyncio.get_running_loop().create_task(work, context=self._context)
        job = Job(new_id(kind.name), kind, model, request, video, self._clock(), task, notices, place)
        task.add_done_callback(lambda _: self._end(job))
        self._running[job.id] = job
        return job

    def find(self, kind: Kind, job_id: str) -> Job:
        """The job of this id. Raises the kind's `not_found`, also for a job of another kind."""
        job = self._running.get(job_id) or self._ended.find(job_id)
        if job is None or job.kind is not kind:
            raise kind.not_found(f"there is no {kind.name} {job_id[:80]!r}: it was deleted, has expired, or never was")
        return job

    def of(self, kind: Kind) -> list[Job]:
        """The jobs of a kind that are kept or run."""
        return [job for job in (*self._ended.values(), *self._running.values()) if job.kind is kind]

    async def cancel(self, job: Job) -> None:
        """Cancels a job and waits until it has ended; a job that had ended stays as it is."""
        job.task.cancel()
        await asyncio.wait([job.task])

    async def forget(self, job: Job) -> None:
        """Removes a job, and cancels it if it runs."""
        self._running.pop(job.id, None)
        await self.cancel(job)
        self._ended.drop(job.id)

    async def close(self) -> None:
        """Cancels all running jobs."""
        await asyncio.gather(*(self.cancel(job) for job in self._running.values()))

    def _end(self, job: Job) -> None:
        job.ended_at = self._clock()
        if job.error is None or isinstance(job.error, LightError):
            log.info("%s of request %s: %s", job.id, job.request.id, job.error or "completed")
        else:
            log.error("%s of request %s failed", job.id, job.request.id, exc_info=job.error)
        _let_go(job.task)
        if self._running.pop(job.id, None) is not None:
            self._ended.add(job.id, job, job.nbytes)
