"""The HTTP routes of OpenAI's videos API: a job is created, polled, downloaded and deleted.

Cancelling a job is an addition. Jobs cannot be listed: no caller sees the jobs of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.card.lookup import progress_of
from deployments.http.errors import with_error_responses
from deployments.http.parsing import parse
from deployments.http.uploads import UploadNames, read_uploads
from deployments.http.video_jobs import VideoJob, VideoJobs
from deployments.http.video_schema import REFERENCE, VideoRequest, check_model, deleted_body, to_request, video_body
from deployments.serving.concurrency import Threads
from deployments.serving.deadline import Deadline
from deployments.serving.served_models import Model, ServedModels
from deployments.settings import ServerSettings
from lightx2v.errors import InvalidRequest
from lightx2v.media.encode import FORMATS, encode
from lightx2v.types import GenerateRequest, Reference

NAMES = UploadNames((REFERENCE,))
ENCODERS = 1
"""Videos that are compressed at the same time, each on all cores."""


class Videos:
    """The handlers of /v1/videos, and the jobs of one application."""

    def __init__(self, models: ServedModels, settings: ServerSettings) -> None:
        self._models, self._settings = models, settings
        self._jobs = VideoJobs()
        self._encoders = Threads(ENCODERS)

    def routes(self) -> list[Route]:
        one = "/v1/videos/{id}"
        return [
            Route("/v1/videos", with_error_responses(self.create), methods=["POST"]),
            Route(one, with_error_responses(self.retrieve)),
            Route(one, with_error_responses(self.delete), methods=["DELETE"]),
            Route(f"{one}/cancel", with_error_responses(self.cancel), methods=["POST"]),
            Route(f"{one}/content", with_error_responses(self.content)),
        ]

    async def create(self, request: Request) -> Response:
        """Starts a job once it is admitted and checked in full. It keeps its place in the queue until it ends."""
        self._models.check_room()
        asked, files = await self._read(request)
        model = self._models.find(asked.model)
        with ExitStack() as place:
            place.enter_context(model.admission.admitted())
            deadline = Deadline.after(model.timeout_seconds)
            video = check_model(model.spec, len(files))
            async with deadline.enforced():
                references = await self._models.fitted(model, files)
                sizes = [reference.fitted.size for reference in references]
                wanted = to_request(asked, model.spec, model.limits, sizes)
                notices = await model.notices(wanted)
            job = self._jobs.start(model.id, wanted, video, self._make(model, wanted, references, deadline), notices)
            leave = place.pop_all().close
            job.task.add_done_callback(lambda _: leave())
        return JSONResponse(video_body(job))

    async def retrieve(self, request: Request) -> Response:
        """Answers with the present state of a job."""
        job = self._find(request)
        if job.ended_at is None:
            await _look(job)
        return JSONResponse(video_body(job))

    async def content(self, request: Request) -> Response:
        """Answers with the file of a completed job."""
        variant = request.query_params.get("variant", "video")
        if variant != "video":
            raise InvalidRequest(f"variant: only video is supported, got {variant[:80]!r}", "variant")
        return Response(self._find(request).content, media_type=FORMATS["mp4"].media_type)

    async def cancel(self, request: Request) -> Response:
        """Cancels a job that runs, and answers with its final state."""
        job = self._find(request)
        await self._jobs.cancel(job)
        return JSONResponse(video_body(job))

    async def delete(self, request: Request) -> Response:
        """Removes a job, and cancels it if it runs."""
        job = self._find(request)
        await self._jobs.forget(job)
        return JSONResponse(deleted_body(job.id))

    async def close(self) -> None:
        """Cancels all jobs."""
        await self._jobs.close()

    def _find(self, request: Request) -> VideoJob:
        return self._jobs.find(request.path_params["id"])

    async def _read(self, request: Request) -> tuple[VideoRequest, Sequence[bytes]]:
        """The body, as JSON or as the form that OpenAI's clients always send, and its picture, if there is one."""
        fields, uploads = await read_uploads(request, self._settings.max_upload_bytes, NAMES, 1)
        return parse(VideoRequest, fields), uploads.pictures

    async def _make(
        self, model: Model, request: GenerateRequest, references: Sequence[Reference], deadline: Deadline
    ) -> bytes:
        async with deadline.enforced():
            (made,) = await model.graph.generate([request], references, deadline)
            return await self._encoders.run(encode, made, "png")


async def _look(job: VideoJob) -> None:
    """Asks the cards for the job's progress."""
    if (progress := await progress_of(job.request.id)) is not None:
        job.advance(progress)
