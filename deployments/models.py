"""The models behind one ingress: each with its defaults, its queue and its graph."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Generic, TypeVar

from ray.serve.handle import DeploymentHandle

from deployments.concurrency import Threads, gathered
from deployments.graph import Graph
from deployments.rehearsal import Rehearsal
from deployments.settings import AppSettings, ServerSettings
from lightx2v.checkpoint import read_spec
from lightx2v.core import Reference, StageName
from lightx2v.errors import ModelNotFound, QueueFull, WarmUpFailed
from lightx2v.limits import Limits
from lightx2v.media.picture import decode_picture
from lightx2v.models.reference import make_reference

DECODERS = 2
"""Uploaded pictures that are unfolded at a time."""


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

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Raises QueueFull."""
        self.check()
        self._inside += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self._inside -= 1
            self._seconds.append(time.monotonic() - start)


S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Served(Generic[S]):
    """One model: its settings and its stages. They are Applications where an application is built; Serve puts a
    DeploymentHandle in place of each when it makes the ingress."""

    settings: AppSettings
    stages: Mapping[StageName, S]
    is_rehearsed: bool


class Model:
    """One model as its callers meet it."""

    def __init__(self, served: Served[DeploymentHandle], server: ServerSettings) -> None:
        self.id = served.settings.model_id
        self.spec = read_spec(served.settings)
        self.limits = Limits(max_references=server.max_references, loras=tuple(served.settings.loras))
        self.graph = Graph(served.stages)
        self.rehearsal = Rehearsal(self.spec, self.graph)
        self.is_rehearsed = served.is_rehearsed
        self.admission = Admission(served.settings.max_queue)
        self.timeout_seconds = served.settings.request_timeout_seconds

    def start(self) -> None:
        """To be called when there is an event loop to work in."""
        if self.is_rehearsed:
            self.rehearsal.start()

    async def ready(self) -> None:
        """Returns when a request would be served without delay; raises what keeps the model from it."""
        await self.graph.ready()
        if reason := await self.rehearsal.over():
            raise WarmUpFailed(f"the first requests to {self.id} failed: {reason}")

    def fit(self, data: bytes) -> Reference:
        """An uploaded reference, decoded and fitted. Raises InvalidRequest."""
        return make_reference(decode_picture(data), self.spec)


class Models:
    """All of one application; the first serves those that name none."""

    def __init__(self, served: Sequence[Served[DeploymentHandle]], server: ServerSettings) -> None:
        self._models = {one.settings.model_id: Model(one, server) for one in served}
        self._decoders = Threads(DECODERS)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def find(self, name: str | None) -> Model:
        """Raises ModelNotFound."""
        model = next(iter(self)) if name is None else self._models.get(name)
        if model is None:
            raise ModelNotFound(f"the model {name!r} is not served here; served are {', '.join(self._models)}")
        return model

    def check_room(self) -> None:
        """Before a body is read nobody knows which model it asks for. Raises QueueFull if none takes any."""
        first, *others = (model.admission for model in self)
        if all(other.is_full for other in others):
            first.check()

    async def fitted(self, model: Model, files: Sequence[bytes]) -> list[Reference]:
        """Few at a time, since one may unfold to 100 MB. Raises InvalidRequest."""
        return await gathered(self._decoders.run(model.fit, data) for data in files)
