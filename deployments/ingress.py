"""The HTTP routes: OpenAI's images API, the list of models, health, and what is resident."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.directory import all_coordinators
from deployments.envelope import error_response
from deployments.graph import LOST, Graph
from deployments.media import encode_picture, read_body, read_form
from deployments.schema import ImageRequest, images_body, models_body, parse_form, parse_json, to_requests
from deployments.settings import AppSettings
from lightx2v.checkpoint import read_recipe
from lightx2v.core import Reference, StageName
from lightx2v.errors import InvalidRequest, LightError, ModelNotFound, QueueFull
from lightx2v.limits import Limits
from lightx2v.models.recipe import make_reference
from lightx2v.picture import decode_picture

HEALTH_SECONDS = 5.0
BODY_SECONDS = 60.0
"""A body that trickles in for longer is given up."""

DECODERS = 2
"""Uploaded pictures that are unfolded at a time."""

Handler = Callable[[Request], Awaitable[Response]]
log = logging.getLogger(__name__)


class Admission:
    """At most `limit` requests inside; one more is refused at once, with the mean time of the last ones as advice."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._seconds: deque[float] = deque([1.0], maxlen=16)

    @property
    def is_full(self) -> bool:
        return self._inside >= self._limit

    def check(self) -> None:
        """Raises QueueFull: before a body is read, and again when it has been."""
        if self.is_full:
            raise QueueFull(f"{self._limit} requests are waiting already; try again later", fmean(self._seconds))

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Raises QueueFull."""
        self.check()
        self._inside += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self._inside -= 1
            self._seconds.append(time.monotonic() - start)


@dataclass(frozen=True, slots=True)
class Served:
    """One model: its settings and its stages."""

    settings: AppSettings
    stages: Mapping[StageName, DeploymentHandle]


class Model:
    """One model as its callers meet it: defaults, a queue, a graph."""

    def __init__(self, served: Served) -> None:
        self.recipe = read_recipe(served.settings)
        self.limits = Limits(loras=tuple(served.settings.loras))
        self.graph = Graph(served.stages)
        self.admission = Admission(served.settings.max_queue)
        self.timeout_seconds = served.settings.request_timeout_seconds

    def fit(self, data: bytes) -> Reference:
        """An uploaded reference, decoded and fitted. Raises InvalidRequest."""
        return make_reference(decode_picture(data), self.recipe)


@serve.ingress()
class Ingress:
    """One application's front: checks a request in full, queues it, and answers in OpenAI's words."""

    def __init__(self, served: Sequence[Served]) -> None:
        self._models = {one.settings.model_id: Model(one) for one in served}
        self._limits = Limits()
        self._decoding = asyncio.Semaphore(DECODERS)
        self._started = int(time.time())

    def __serve_build_asgi_app__(self) -> Starlette:
        """The routes; called by Serve when the replica starts."""
        routes = [
            Route("/v1/images/generations", _answering(self.generations), methods=["POST"]),
            Route("/v1/images/edits", _answering(self.edits), methods=["POST"]),
            Route("/v1/models", _answering(self.models)),
            Route("/v1/residency", _answering(self.residency)),
            Route("/health", _answering(self.health)),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _not_served})

    async def generations(self, request: Request) -> Response:
        """Text to image."""
        self._check_room()
        async with _reading():
            body = await read_body(request, self._limits.max_json_bytes)
        return await self._images(parse_json(body), [])

    async def edits(self, request: Request) -> Response:
        """One or several reference images and a prompt to a new image."""
        self._check_room()
        async with _reading():
            fields, files = await read_form(request, self._limits.max_upload_bytes, self._limits.max_references)
        return await self._images(parse_form(fields), files)

    async def models(self, _: Request) -> Response:
        """What is served."""
        return JSONResponse(models_body(self._models, self._started))

    async def residency(self, _: Request) -> Response:
        """Who holds how much of which card."""
        asked = [_report(coordinator) for coordinator in await all_coordinators()]
        return JSONResponse({"gpus": [report for report in await asyncio.gather(*asked) if report is not None]})

    async def health(self, _: Request) -> Response:
        """200 when an image can be made, 503 with the reason otherwise."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await asyncio.gather(*(model.graph.ready() for model in self._models.values()))
        except (TimeoutError, *LOST):
            return JSONResponse({"status": "starting", "reason": "a stage does not answer yet"}, 503)
        except LightError as error:
            return JSONResponse({"status": "failed", "reason": str(error)}, 503)
        return JSONResponse({"status": "ok"})

    def _check_room(self) -> None:
        """Before a body is read nobody knows which model it asks for. Raises QueueFull if none takes any."""
        first, *others = (model.admission for model in self._models.values())
        if all(other.is_full for other in others):
            first.check()

    def _find(self, name: str | None) -> Model:
        """The model asked for; the first where none is. Raises ModelNotFound."""
        model = next(iter(self._models.values())) if name is None else self._models.get(name)
        if model is None:
            raise ModelNotFound(f"the model {name!r} is not served here; served are {', '.join(self._models)}")
        return model

    async def _images(self, asked: ImageRequest, files: list[bytes]) -> Response:
        model, start = self._find(asked.model), time.monotonic()
        async with model.admission.admitted():
            references = [await self._fitted(model, data) for data in files]
            sizes = [reference.fitted.size for reference in references]
            requests = to_requests(asked, model.recipe, model.limits, sizes)
            seconds = model.timeout_seconds - (time.monotonic() - start)
            made = await model.graph.generate(requests, references, seconds)
            encoded = [await asyncio.to_thread(encode_picture, picture, asked.output_format) for picture in made]
        log.info("request %s: %d pictures in %.3f s", requests[0].id, len(made), time.monotonic() - start)
        return JSONResponse(images_body(asked, requests, encoded, int(time.time())))

    async def _fitted(self, model: Model, data: bytes) -> Reference:
        """Few at a time, since one may unfold to 100 MB."""
        async with self._decoding:
            return await asyncio.to_thread(model.fit, data)


def _answering(handler: Handler) -> Handler:
    """Errors become answers; an unexpected one is logged with its traceback, of which the caller is told nothing."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except LightError as error:
            log.info("%s %s: %s: %s", request.method, request.url.path, error.code, error)
            return error_response(error)
        except HTTPException:
            raise
        except Exception as error:
            log.exception("%s %s failed", request.method, request.url.path)
            return error_response(error)

    return answer


async def _report(coordinator: Any) -> Any:
    """A card's report; None where its coordinator is gone, or its node."""
    try:
        async with asyncio.timeout(HEALTH_SECONDS):
            return await coordinator.report.remote()
    except (TimeoutError, RayActorError) as error:
        log.warning("a coordinator does not answer: %r", error)
        return None


async def _not_served(_: Request, error: Exception) -> Response:
    return error_response(error)


@asynccontextmanager
async def _reading() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            yield
    except TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {BODY_SECONDS:g} s") from None
