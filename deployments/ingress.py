"""The HTTP routes: OpenAI's images and videos APIs, the list of models, health, and what is resident."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatus
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.concurrency import Threads, gathered
from deployments.deadline import Deadline
from deployments.directory import reports
from deployments.envelope import answering, error_response
from deployments.logs import speak
from deployments.media import JSON, read_body, read_form
from deployments.models import Models, Served
from deployments.origins import OriginCheck
from deployments.parsing import parse_form, parse_json
from deployments.remote import LOST
from deployments.schema import ImageRequest, images_body, models_body, to_requests
from deployments.settings import ServerSettings
from deployments.videos import Videos
from lightx2v.errors import InvalidRequest, LightError
from lightx2v.media.encode import encode

HEALTH_SECONDS = 5.0
ENCODERS = 2
"""Pictures that are compressed at a time; each PNG on all cores."""
REFERENCES = ("image", "image[]")
"""What the files of a form are called."""

log = logging.getLogger(__name__)


@serve.ingress()
class Ingress:
    """One application's front: checks a request in full, queues it, and answers in OpenAI's words."""

    def __init__(self, served: Sequence[Served[DeploymentHandle]], settings: ServerSettings) -> None:
        speak()
        self._models = Models(served, settings)
        self._videos = Videos(self._models, settings)
        self._settings = settings
        self._encoders = Threads(ENCODERS)
        self._started = int(time.time())

    def __serve_build_asgi_app__(self) -> Starlette:
        """The routes; called by Serve when the replica starts."""
        routes = [
            Route("/v1/images/generations", answering(self.generations), methods=["POST"]),
            Route("/v1/images/edits", answering(self.edits), methods=["POST"]),
            *self._videos.routes(),
            Route("/v1/models", answering(self.models)),
            Route("/v1/residency", answering(self.residency)),
            Route("/health", answering(self.health)),
        ]
        allowed = Middleware(OriginCheck, self._settings.allowed_hosts, self._settings.allowed_origins)
        handlers = {HTTPException: _not_served}
        return Starlette(routes=routes, middleware=[allowed], exception_handlers=handlers, lifespan=self._living)

    async def generations(self, request: Request) -> Response:
        """Text to image."""
        self._models.check_room()
        body = await read_body(request, self._settings.max_json_bytes)
        return await self._images(parse_json(ImageRequest, body), [])

    async def edits(self, request: Request) -> Response:
        """One or several reference images and a prompt to a new image."""
        self._models.check_room()
        most = self._settings.max_references
        fields, files = await read_form(request, self._settings.max_upload_bytes, most, REFERENCES)
        if not files:
            raise InvalidRequest("image is required: one or more files", "image")
        return await self._images(parse_form(ImageRequest, fields), files)

    async def models(self, _: Request) -> Response:
        """What is served."""
        return JSONResponse(models_body((model.id for model in self._models), self._started))

    async def residency(self, _: Request) -> Response:
        """Who holds how much of which card."""
        return JSONResponse({"gpus": await reports()})

    async def health(self, _: Request) -> Response:
        """200 when an image can be made, 503 with the reason otherwise."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await gathered(model.ready() for model in self._models)
        except (TimeoutError, *LOST):
            return await _not_yet()
        except LightError as error:
            return _unwell("failed", str(error))
        return JSONResponse({"status": "ok"})

    async def _images(self, asked: ImageRequest, files: list[bytes]) -> Response:
        model = self._models.find(asked.model)
        deadline = Deadline.after(model.timeout_seconds)
        with model.admission.admitted():
            async with deadline.enforced():
                references = await self._models.fitted(model, files)
                sizes = [reference.fitted.size for reference in references]
                requests = to_requests(asked, model.spec, model.limits, sizes)
                made = await model.graph.generate(requests, references, deadline)
                encoded = [await self._encoders.run(encode, picture, asked.output_format) for picture in made]
                body = await self._encoders.run(images_body, asked, requests, encoded, int(time.time()))
        log.info("request %s: %d pictures in %.3f s", requests[0].id, len(made), deadline.seconds - deadline.left)
        return Response(body, media_type=JSON)

    @asynccontextmanager
    async def _living(self, _: Starlette) -> AsyncIterator[None]:
        """Around the life of the replica."""
        for model in self._models:
            model.start()
        yield
        await self._videos.close()


async def _not_yet() -> Response:
    """Of stages that do not answer: whether Serve has given any of them up, and what the process said at its end."""
    name = serve.get_replica_context().app_name
    application = (await asyncio.to_thread(serve.status)).applications[name]
    for stage, deployment in application.deployments.items():
        if deployment.status == DeploymentStatus.DEPLOY_FAILED:
            *_, reason = deployment.message.splitlines() or ["Serve gives no reason"]
            return _unwell("failed", f"{stage}: {reason}")
    return _unwell("starting", "its stages are being started")


def _unwell(status: str, reason: str) -> Response:
    return JSONResponse({"status": status, "reason": reason}, 503)


async def _not_served(_: Request, error: Exception) -> Response:
    return error_response(error)
