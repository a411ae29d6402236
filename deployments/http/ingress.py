"""The HTTP routes: OpenAI's images and videos APIs, LightX2V's tasks, the models, health, and memory residency."""

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

from deployments.card.lookup import reports
from deployments.http.askers import asker_of, best_asker
from deployments.http.bodies import JSON, read_body
from deployments.http.errors import error_response, with_error_responses
from deployments.http.images import ImageRequest, images_body, model_body, models_body, stand_ins, to_requests
from deployments.http.job_runner import JobRunner
from deployments.http.key_check import KeyCheck
from deployments.http.keys import KeyFile
from deployments.http.loopback import LoopbackOnly
from deployments.http.notices import notice_headers
from deployments.http.origins import origin_checks
from deployments.http.parsing import parse, parse_json
from deployments.http.picture_files import PictureFiles
from deployments.http.queue_report import queue_body
from deployments.http.tasks import Tasks
from deployments.http.uploads import UploadNames, Uploads, read_uploads
from deployments.http.videos import Videos
from deployments.logs import configure_logging
from deployments.remote import LOST
from deployments.serving.concurrency import Threads, gathered
from deployments.serving.served_models import ModelDeployment, ServedModels
from deployments.settings import ServerSettings
from lightx2v.errors import InvalidRequest, LightError
from lightx2v.media.encode import encode
from lightx2v.types import GenerateRequest, Size

HEALTH_SECONDS = 5.0
OPEN_PATHS = ("/health",)
"""What anybody may ask for: probes have no key, and come from other machines."""
ENCODERS = 2
"""Pictures that are compressed at the same time; a PNG uses all cores."""
EDIT_NAMES = UploadNames(("image", "images"), "mask")

log = logging.getLogger(__name__)


@serve.ingress()
class Ingress:
    """The HTTP front of an application: it checks a request in full, queues it, and answers in OpenAI's format."""

    def __init__(self, served: Sequence[ModelDeployment[DeploymentHandle]], settings: ServerSettings) -> None:
        configure_logging()
        self._models = ServedModels(served, settings)
        self._jobs = JobRunner(self._models)
        self._videos = Videos(self._models, self._jobs, settings)
        self._tasks = Tasks(self._models, self._jobs, settings)
        self._files = PictureFiles(settings.allowed_hosts)
        self._settings = settings
        self._encoders = Threads(ENCODERS)
        self._started = int(time.time())
        self._keys = KeyFile(settings.keys_file) if settings.keys_file else None

    def __serve_build_asgi_app__(self) -> Starlette:
        """The ASGI application; Serve calls this when the replica starts."""
        routes = [
            Route("/v1/images/generations", with_error_responses(self.generations), methods=["POST"]),
            Route("/v1/images/edits", with_error_responses(self.edits), methods=["POST"]),
            self._files.route(),
            *self._videos.routes(),
            *self._tasks.routes(),
            Route("/v1/models", with_error_responses(self.models)),
            Route("/v1/models/{id:path}", with_error_responses(self.model)),
            Route("/v1/residency", with_error_responses(self.residency)),
            Route("/health", with_error_responses(self.health)),
        ]
        checks = origin_checks(self._settings.allowed_hosts, self._settings.allowed_origins)
        if self._keys is not None:
            checks.append(Middleware(KeyCheck, self._keys, OPEN_PATHS))
        elif not self._settings.allow_without_keys:
            checks.append(Middleware(LoopbackOnly, OPEN_PATHS))
        handlers = {HTTPException: _not_served}
        return Starlette(routes=routes, middleware=checks, exception_handlers=handlers, lifespan=self._living)

    async def generations(self, request: Request) -> Response:
        """POST /v1/images/generations: text to image."""
        self._models.check_room(best_asker(request, self._settings.max_priority))
        body = await read_body(request, self._settings.max_json_bytes)
        return await self._images(request, parse_json(ImageRequest, body), Uploads())

    async def edits(self, request: Request) -> Response:
        """POST /v1/images/edits: reference pictures and a prompt to a new picture, from a form or from JSON."""
        limit, most = self._settings.max_upload_bytes, self._settings.max_references
        with self._models.reading(best_asker(request, self._settings.max_priority)):
            fields, uploads = await read_uploads(request, limit, EDIT_NAMES, most)
        if not uploads.pictures:
            raise InvalidRequest("image is required: one or more pictures", "image")
        return await self._images(request, parse(ImageRequest, fields), uploads)

    async def models(self, _: Request) -> Response:
        """GET /v1/models: the models that are served."""
        return JSONResponse(models_body(self._models.names, self._started))

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}: one model; its id may be a hub id with a slash."""
        return JSONResponse(model_body(self._models.find(request.path_params["id"]).id, self._started))

    async def residency(self, _: Request) -> Response:
        """GET /v1/residency: the memory that each stage holds on each card, and each model's queue."""
        gpus = await reports()
        return JSONResponse({"gpus": gpus, "queue": {model.id: queue_body(model, gpus) for model in self._models}})

    async def health(self, _: Request) -> Response:
        """GET /health: 200 when an image can be made, 503 with the reason otherwise."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await gathered(model.ready() for model in self._models)
        except (TimeoutError, *LOST):
            return await _starting_or_failed()
        except LightError as error:
            return _unavailable("failed", str(error))
        return JSONResponse({"status": "ok"})

    async def _images(self, request: Request, asked: ImageRequest, uploads: Uploads) -> Response:
        model = self._models.find(asked.model)
        asker = asker_of(request, asked.priority, self._settings.max_priority)

        def wanted(sizes: Sequence[Size]) -> Sequence[GenerateRequest]:
            return to_requests(asked, model.spec, model.limits, sizes, is_masked=uploads.mask is not None)

        draft = wanted(stand_ins(asked, model.spec, model.limits, len(uploads.pictures)))
        with model.admission.admitted(asker, model.work(draft)) as place:
            async with place.making():
                references = await self._models.fitted(model, uploads.pictures, uploads.mask)
                requests = wanted([reference.fitted.size for reference in references])
                place.resize(model.work(requests))
                notices = await model.notices(requests[0])
                made = await model.graph.generate(requests, references, place.deadline, place.rank)
                encoded = [await self._encoders.run(encode, picture, asked.output_format) for picture in made]
                results = self._results(request, asked, encoded)
                body = await self._encoders.run(images_body, asked.output_format, requests, results, int(time.time()))
        passed = place.deadline.seconds - place.deadline.left
        log.info("request %s: %d pictures in %.3f s", requests[0].id, len(made), passed)
        return Response(body, headers=notice_headers(notices), media_type=JSON)

    def _results(self, request: Request, asked: ImageRequest, encoded: Sequence[bytes]) -> Sequence[bytes | str]:
        """The files themselves, or URLs under which they are kept for a while."""
        if asked.response_format == "b64_json":
            return encoded
        return [self._files.add(request, file, asked.output_format) for file in encoded]

    @asynccontextmanager
    async def _living(self, _: Starlette) -> AsyncIterator[None]:
        """Starts the warm-ups with the replica, and ends its jobs with it."""
        for model in self._models:
            model.start()
        yield
        await self._jobs.close()


async def _starting_or_failed() -> Response:
    """The answer while stages do not respond: "failed" with the last line of Serve's message if Serve has given one up,
    else "starting"."""
    name = serve.get_replica_context().app_name
    application = (await asyncio.to_thread(serve.status)).applications[name]
    for stage, deployment in application.deployments.items():
        if deployment.status == DeploymentStatus.DEPLOY_FAILED:
            *_, reason = deployment.message.splitlines() or ["Serve gives no reason"]
            return _unavailable("failed", f"{stage}: {reason}")
    return _unavailable("starting", "its stages are being started")


def _unavailable(status: str, reason: str) -> Response:
    return JSONResponse({"status": status, "reason": reason}, 503)


async def _not_served(_: Request, error: Exception) -> Response:
    return error_response(error)
