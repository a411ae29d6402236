"""The HTTP routes of OpenAI's videos API: a video is a job that is asked for, looked at, downloaded, deleted.

Cancelling a job is an addition. A list is not offered: nothing of one caller is visible to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.concurrency import Threads
from deployments.deadline import Deadline
from deployments.directory import progress_of
from deployments.envelope import answering
from deployments.jobs import Job, Jobs
from deployments.media import is_form, read_body, read_form
from deployments.models import Model, Models
from deployments.parsing import parse_form, parse_json
from deployments.settings import ServerSettings
from deployments.video_schema import REFERENCE, VideoRequest, check_model, deleted_body, to_request, video_body
from lightx2v.core import GenerateRequest, Reference
from lightx2v.errors import InvalidRequest
from lightx2v.media.encode import FORMATS, encode

ENCODERS = 1
"""Videos that are compressed at a time, each on all cores."""


class Videos:
    """The jobs of one application over HTTP."""

    def __init__(self, models: Models, settings: ServerSettings) -> None:
        self._models, self._settings = models, settings
        self._jobs = Jobs()
        self._encoders = Threads(ENCODERS)

    def routes(self) -> list[Route]:
        one = "/v1/videos/{id}"
        return [
            Route("/v1/videos", answering(self.create), methods=["POST"]),
            Route(one, answering(self.retrieve)),
            Route(one, answering(self.delete), methods=["DELETE"]),
            Route(f"{one}/cancel", answering(self.cancel), methods=["POST"]),
            Route(f"{one}/content", answering(self.content)),
        ]

    async def create(self, request: Request) -> Response:
        """A new job, admitted and checked in full. It keeps its place in the model's queue until it ends."""
        self._models.check_room()
        asked, files = await self._read(request)
        model = self._models.find(asked.model)
        with ExitStack() as place:
            place.enter_context(model.admission.admitted())
            deadline = Deadline.after(model.timeout_seconds)
            clip = check_model(model.spec, len(files))
            async with deadline.enforced():
                references = await self._models.fitted(model, files)
            sizes = [reference.fitted.size for reference in references]
            wanted = to_request(asked, model.spec, model.limits, sizes)
            job = self._jobs.start(model.id, wanted, clip, self._make(model, wanted, references, deadline))
            leave = place.pop_all().close
            job.task.add_done_callback(lambda _: leave())
        return JSONResponse(video_body(job))

    async def retrieve(self, request: Request) -> Response:
        """The job as it is now."""
        job = self._find(request)
        if job.ended_at is None:
            await _look(job)
        return JSONResponse(video_body(job))

    async def content(self, request: Request) -> Response:
        """The file of a completed job."""
        variant = request.query_params.get("variant", "video")
        if variant != "video":
            raise InvalidRequest(f"variant: only video is supported, got {variant[:80]!r}", "variant")
        return Response(self._find(request).content, media_type=FORMATS["mp4"].media_type)

    async def cancel(self, request: Request) -> Response:
        """The job as it ended: with this, or before it."""
        job = self._find(request)
        await self._jobs.cancel(job)
        return JSONResponse(video_body(job))

    async def delete(self, request: Request) -> Response:
        """Forgets a job, which ends if it runs."""
        job = self._find(request)
        await self._jobs.forget(job)
        return JSONResponse(deleted_body(job.id))

    async def close(self) -> None:
        """Cancels all jobs."""
        await self._jobs.close()

    def _find(self, request: Request) -> Job:
        return self._jobs.find(request.path_params["id"])

    async def _read(self, request: Request) -> tuple[VideoRequest, list[bytes]]:
        """OpenAI's clients always send a form."""
        if not is_form(request):
            return parse_json(VideoRequest, await read_body(request, self._settings.max_json_bytes)), []
        fields, files = await read_form(request, self._settings.max_upload_bytes, 1, (REFERENCE,))
        return parse_form(VideoRequest, fields), files

    async def _make(
        self, model: Model, request: GenerateRequest, references: Sequence[Reference], deadline: Deadline
    ) -> bytes:
        async with deadline.enforced():
            (made,) = await model.graph.generate([request], references, deadline)
            return await self._encoders.run(encode, made, "png")


async def _look(job: Job) -> None:
    """Asks the cards how far it is."""
    if (progress := await progress_of(job.request.id)) is not None:
        job.advance(progress)
