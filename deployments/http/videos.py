"""The HTTP routes of OpenAI's videos API: a job is created, polled, downloaded and deleted.

Cancelling a job is an addition. Jobs cannot be listed: no caller sees the jobs of another.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.http.askers import asker_of
from deployments.http.errors import with_error_responses
from deployments.http.images import stand_ins
from deployments.http.job_runner import JobRunner
from deployments.http.jobs import VIDEO, Job
from deployments.http.parsing import parse
from deployments.http.uploads import UploadNames, read_uploads
from deployments.http.video_schema import REFERENCE, VideoRequest, check_model, deleted_body, to_request, video_body
from deployments.serving.served_models import ServedModels
from deployments.settings import ServerSettings
from lightx2v.errors import InvalidRequest
from lightx2v.types import GenerateRequest, Size

NAMES = UploadNames((REFERENCE,))


class Videos:
    """The handlers of /v1/videos."""

    def __init__(self, models: ServedModels, runner: JobRunner, settings: ServerSettings) -> None:
        self._models, self._runner, self._settings = models, runner, settings

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
        most = self._settings.max_priority
        self._models.check_room(asker_of(request, most, most))
        fields, uploads = await read_uploads(request, self._settings.max_upload_bytes, NAMES, 1)
        asked = parse(VideoRequest, fields)
        model = self._models.find(asked.model)
        check_model(model.spec, len(uploads.pictures))

        def wanted(references: Sequence[Size]) -> GenerateRequest:
            return to_request(asked, model.spec, model.limits, references)

        asker = asker_of(request, asked.priority, most)
        drafted = stand_ins(asked, model.spec, model.limits, len(uploads.pictures))
        return JSONResponse(video_body(await self._runner.start(VIDEO, model, asker, uploads, drafted, wanted)))

    async def retrieve(self, request: Request) -> Response:
        """Answers with the present state of a job."""
        job = self._find(request)
        await self._runner.look(job)
        return JSONResponse(video_body(job))

    async def content(self, request: Request) -> Response:
        """Answers with the file of a completed job."""
        variant = request.query_params.get("variant", "video")
        if variant != "video":
            raise InvalidRequest(f"variant: only video is supported, got {variant[:80]!r}", "variant")
        job = self._find(request)
        return Response(job.content, media_type=job.media_type)

    async def cancel(self, request: Request) -> Response:
        """Cancels a job that runs, and answers with its final state."""
        job = self._find(request)
        await self._runner.jobs.cancel(job)
        return JSONResponse(video_body(job))

    async def delete(self, request: Request) -> Response:
        """Removes a job, and cancels it if it runs."""
        job = self._find(request)
        await self._runner.jobs.forget(job)
        return JSONResponse(deleted_body(job.id))

    def _find(self, request: Request) -> Job:
        return self._runner.jobs.find(VIDEO, request.path_params["id"])
