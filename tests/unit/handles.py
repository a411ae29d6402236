"""Stage deployments in this process, and an ingress before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from deployments.http.ingress import Ingress
from deployments.serving.served_models import ModelDeployment
from deployments.settings import ModelSettings, ServerSettings
from lightx2v.models.notices import Notice, truncated
from lightx2v.types import GenerateRequest, Latents, Picture, StageName, Video

TOKENS: Any = "tokens"
Behaviour = Callable[..., Awaitable[Any]]


class Response:
    """What a handle returns: awaited any number of times, passed on, cancelled."""

    def __init__(self, result: Awaitable[Any]) -> None:
        self._task = asyncio.ensure_future(result)

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.shield(self._task).__await__()

    def cancel(self) -> None:
        self._task.cancel()

    async def cancelled(self) -> bool:
        """Once it has ended."""
        await asyncio.wait([self._task])
        return self._task.cancelled()


class Remote:
    """A method of a deployment."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.responses: list[Response] = []

    def remote(self, *arguments: Any, **inputs: Any) -> Response:
        self.responses.append(Response(self._behaviour(*arguments, **inputs)))
        return self.responses[-1]


class Handle:
    """One stage, which makes something at once and notes what it was called with."""

    def __init__(self, stage: StageName) -> None:
        self.deployment_name = stage
        self.calls: list[tuple[str, GenerateRequest, tuple[Any, ...]]] = []
        self.fails: list[Exception] = []
        """What the next calls raise, one each."""
        self.call, self.ready = Remote(self._call), Remote(self._ready)
        self.truncations = Remote(self._truncations)

    async def _ready(self) -> None:
        """It is."""

    async def _truncations(self, request: GenerateRequest) -> tuple[Notice, ...]:
        """A prompt is cut to ten words."""
        self.calls.append(("truncations", request, ()))
        if self.fails:
            raise self.fails.pop(0)
        return truncated("prompt_truncated", len(request.prompt.split()), 10)

    async def _call(self, method: str, request: GenerateRequest, _: Any, **inputs: Any) -> Any:
        values = tuple([await one if isinstance(one, Response) else one for one in inputs.values()])
        self.calls.append((method, request, values))
        if self.fails:
            raise self.fails.pop(0)
        return self._made(method, request)

    def _made(self, method: str, request: GenerateRequest) -> Any:
        if self.deployment_name == "decode" and method == "run":
            pixels = np.zeros((request.frames, request.size.height, request.size.width, 3), np.uint8)
            return Picture(pixels[0]) if request.frames == 1 else Video(pixels, 16)
        if self.deployment_name in ("denoise", "refine"):
            return Latents(TOKENS, 1, 1, history=self.history)
        return f"{self.deployment_name} {method}"

    history: tuple[Any, ...] = ()
    """Of the latents: what a second transformer would go on with."""


def handles(*stages: StageName) -> dict[StageName, Handle]:
    return {stage: Handle(stage) for stage in stages or ("encode", "denoise", "decode")}


@asynccontextmanager
async def front(*served: ModelDeployment[Any], **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """HTTP to an ingress, alive as in a replica."""
    written: Any = Ingress.__mro__[1]  # around which Serve puts a class for its replicas
    app = written(served, ServerSettings(**settings)).__serve_build_asgi_app__()
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            yield client


def served(
    model: Path, stages: Mapping[StageName, Any], warmed_up: bool = False, **settings: Any
) -> ModelDeployment[Any]:
    return ModelDeployment(ModelSettings(model=str(model), **settings), stages, warmed_up)
