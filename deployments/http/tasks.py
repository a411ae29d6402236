"""The HTTP routes of LightX2V's task API: a task is created, polled, fetched and cancelled.

A task's id is its only credential. So tasks are not listed, and nobody can cancel those of all callers; LightX2V does
both.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.http.askers import asker_of
from deployments.http.errors import with_error_responses
from deployments.http.images import stand_ins
from deployments.http.job_runner import JobRunner
from deployments.http.jobs import TASK, Job
from deployments.http.notices import task_headers
from deployments.http.parsing import parse
from deployments.http.task_schema import (
    PICTURES,
    ImageTask,
    TaskRequest,
    VideoTask,
    check_task,
    created_body,
    status_body,
    supported,
    task_status,
    to_request,
)
from deployments.http.uploads import read_uploads
from deployments.serving.served_models import ServedModels
from deployments.settings import ServerSettings
from lightx2v.errors import DeadlineExceeded, InvalidRequest, TaskNotFound, TasksNotListed
from lightx2v.types import GenerateRequest, Size

Kind = type[ImageTask] | type[VideoTask]
TASKS = "/v1/tasks"
SYNC_SECONDS = 600.0
"""The longest time that a caller of /sync waits, unless it says otherwise; LightX2V's own."""


class Tasks:
    """The handlers of /v1/tasks and /v1/service."""

    def __init__(self, models: ServedModels, runner: JobRunner, settings: ServerSettings) -> None:
        self._models, self._runner, self._settings = models, runner, settings

    def routes(self) -> list[Route]:
        """The routes. LightX2V's paths end in a slash; clients often leave it out."""
        posted = {
            "/image": self._creator(ImageTask),
            "/image/form": self._creator(ImageTask),
            "/image/sync": self.sync,
            "/video": self._creator(VideoTask),
            "/video/form": self._creator(VideoTask),
        }
        one = f"{TASKS}/{{id}}"
        return [
            *(_post(f"{TASKS}{path}{end}", handler) for path, handler in posted.items() for end in ("", "/")),
            *(_post(f"{TASKS}{end}", self._creator(VideoTask)) for end in ("", "/")),
            *(Route(f"{TASKS}{end}", with_error_responses(self.refuse_all)) for end in ("", "/")),
            Route(f"{TASKS}/all/running", with_error_responses(self.refuse_all), methods=["DELETE"]),
            Route(f"{TASKS}/queue/status", with_error_responses(self.queue)),
            Route(f"{one}/status", with_error_responses(self.status)),
            Route(f"{one}/result", with_error_responses(self.result)),
            Route(one, with_error_responses(self.cancel), methods=["DELETE"]),
            Route("/v1/service/status", with_error_responses(self.service)),
        ]

    async def sync(self, request: Request) -> Response:
        """Makes a picture and answers with its PNG; headers name its seed and what of the request is ignored. The task
        ends with the call, however that ends."""
        seconds = _timeout(request)
        job, warnings = await self._create(ImageTask, request)
        try:
            await asyncio.wait([job.task], timeout=seconds)
            if job.ended_at is None:
                raise DeadlineExceeded(f"the task did not end within the {seconds:g} s of timeout_seconds")
            if job.error is not None:
                raise job.error
            return Response(job.content, media_type=job.media_type, headers=task_headers(job.request.seed, warnings))
        finally:
            await self._runner.jobs.forget(job)

    async def status(self, request: Request) -> Response:
        """Answers with the present state of a task."""
        job = self._find(request)
        await self._runner.look(job)
        return JSONResponse(status_body(job))

    async def result(self, request: Request) -> Response:
        """Answers with the file of a completed task."""
        job = self._find(request)
        suffix = job.media_type.partition("/")[2]
        headers = {"Content-Disposition": f'attachment; filename="{job.id}.{suffix}"'}
        return Response(job.content, media_type=job.media_type, headers=headers)

    async def cancel(self, request: Request) -> Response:
        """Cancels a task that waits or runs. Its state stays known, as in LightX2V."""
        with suppress(TaskNotFound):
            job = self._find(request)
            await self._runner.jobs.cancel(job)
            if task_status(job) == "cancelled":
                return JSONResponse({"stop_status": "success", "reason": "Task stopped successfully."})
        return JSONResponse({"stop_status": "do_nothing", "reason": "Task not found or already completed."})

    async def queue(self, _: Request) -> Response:
        """Answers with the numbers of requests, those of other routes too."""
        size, free = self._room()
        counts = await self._counts()
        return JSONResponse(
            {
                "is_processing": free < size,
                "pending_count": counts["pending"],
                "active_count": size - free,
                "queue_size": size,
                "queue_available": free,
            }
        )

    async def service(self, _: Request) -> Response:
        """Answers with the numbers of tasks that run or are kept."""
        size, free = self._room()
        counts = await self._counts()
        return JSONResponse(
            {
                "service_status": "busy" if free < size else "idle",
                "pending_tasks": counts["pending"],
                "queue_size": size,
                "total_tasks": counts.total(),
                "completed_tasks": counts["completed"],
                "failed_tasks": counts["failed"],
            }
        )

    async def refuse_all(self, _: Request) -> NoReturn:
        """Refuses to list or cancel the tasks of all callers. Raises TasksNotListed."""
        raise TasksNotListed(
            "tasks of other callers are neither listed nor cancelled: an id is its task's only credential; "
            f"{TASKS}/queue/status has their number"
        )

    def _creator(self, kind: Kind) -> Callable[[Request], Awaitable[Response]]:
        async def create(request: Request) -> Response:
            job, warnings = await self._create(kind, request)
            return JSONResponse(created_body(job, warnings))

        return create

    async def _create(self, kind: Kind, request: Request) -> tuple[Job, list[str]]:
        """Starts a task once it is admitted and checked in full, and says what of it is ignored."""
        highest = self._settings.max_priority
        self._models.check_room(asker_of(request, highest, highest))
        limit, most = self._settings.max_upload_bytes, self._settings.max_references
        fields, uploads = await read_uploads(request, limit, PICTURES, most)
        asked: TaskRequest = parse(kind, supported(fields))
        model = self._models.find(asked.model)
        is_masked = uploads.mask is not None
        check_task(asked, model.spec, len(uploads.pictures), is_masked=is_masked)

        def wanted(references: Sequence[Size]) -> GenerateRequest:
            return to_request(asked, model.spec, model.limits, references, is_masked=is_masked)

        asker = asker_of(request, asked.priority, highest)
        drafted = stand_ins(asked, model.spec, model.limits, len(uploads.pictures))
        job = await self._runner.start(TASK, model, asker, uploads, drafted, wanted)
        return job, [*asked.warnings(len(uploads.pictures)), *map(str, job.notices)]

    def _find(self, request: Request) -> Job:
        return self._runner.jobs.find(TASK, request.path_params["id"])

    def _room(self) -> tuple[int, int]:
        """How many requests all models admit at a time, and how many more they would admit now."""
        admissions = [model.admission for model in self._models]
        return sum(one.limit for one in admissions), sum(one.free for one in admissions)

    async def _counts(self) -> Counter[str]:
        """The number of tasks in each of LightX2V's states."""
        jobs = self._runner.jobs.of(TASK)
        await asyncio.gather(*map(self._runner.look, jobs))
        return Counter(map(task_status, jobs))


def _post(path: str, handler: Callable[[Request], Awaitable[Response]]) -> Route:
    return Route(path, with_error_responses(handler), methods=["POST"])


def _timeout(request: Request) -> float:
    text = request.query_params.get("timeout_seconds", str(SYNC_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(
            f"timeout_seconds: must be a positive number of seconds, got {text[:80]!r}", "timeout_seconds"
        )
    return seconds
