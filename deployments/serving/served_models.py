"""The models that an ingress serves, each with its defaults, its queue and its graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from ray.serve.handle import DeploymentHandle

from deployments.serving.admission import Admission, Asker
from deployments.serving.concurrency import Threads, gathered
from deployments.serving.graph import Graph
from deployments.serving.warm_up import WarmUp
from deployments.settings import ModelSettings, ServerSettings
from lightx2v.checkpoint import read_spec
from lightx2v.errors import ModelNotFound, QueueFull, WarmUpFailed
from lightx2v.limits import Limits
from lightx2v.media.mask import decode_mask
from lightx2v.media.picture import decode_picture
from lightx2v.models.notices import Notice, ignored, may_be_cut
from lightx2v.models.reference_image import make_reference
from lightx2v.models.work import work_of
from lightx2v.residency.backlog import Backlog
from lightx2v.types import GenerateRequest, Reference, StageName

log = logging.getLogger(__name__)

DECODERS = 2
"""Uploaded pictures that are decoded at the same time."""


S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class ModelDeployment(Generic[S]):
    """The settings and stages of one model. Stages are Applications while an application is built; Serve replaces each
    with a DeploymentHandle when it makes the ingress."""

    settings: ModelSettings
    stages: Mapping[StageName, S]
    is_warmed_up: bool


class Model:
    """One served model: its defaults, limits, queue, graph and warm-up."""

    def __init__(self, served: ModelDeployment[DeploymentHandle], server: ServerSettings, backlog: Backlog) -> None:
        self.id = served.settings.model_id
        self.spec = read_spec(served.settings)
        self.limits = Limits(
            max_references=server.max_references,
            loras=tuple(served.settings.loras),
            size_policy=served.settings.size_policy,
        )
        self.graph = Graph(served.stages, self.spec)
        self.warm_up = WarmUp(self.spec, self.graph)
        self.is_warmed_up = served.is_warmed_up
        timeout = served.settings.request_timeout_seconds
        self.admission = Admission(self.id, served.settings.max_queue, timeout, backlog)

    def start(self) -> None:
        """Starts the warm-up. Call it inside a running event loop."""
        if self.is_warmed_up:
            self.warm_up.start()

    async def ready(self) -> None:
        """Returns when the model can serve and its warm-up is over. Raises the error that keeps it from serving."""
        await self.graph.ready()
        if reason := await self.warm_up.over():
            raise WarmUpFailed(f"the first requests to {self.id} failed: {reason}")

    def work(self, requests: Sequence[GenerateRequest]) -> float:
        """The work of these requests, as a multiple of the model's planned request."""
        return work_of(requests, self.spec)

    def fit(self, data: bytes, mask: bytes | None) -> Reference:
        """An uploaded reference, decoded and fitted, with its mask if there is one. Raises InvalidRequest."""
        return make_reference(decode_picture(data), self.spec, None if mask is None else decode_mask(mask))

    async def notices(self, request: GenerateRequest) -> tuple[Notice, ...]:
        """The parts of a request that have no effect; each is logged. The stage is asked only about long prompts."""
        cut = await self.graph.truncations(request) if may_be_cut(request, self.spec) else ()
        notices = (*ignored(request, self.spec), *cut)
        for notice in notices:
            log.warning("request %s: %s", request.id, notice)
        return notices


class ServedModels:
    """All models of an application. The first serves requests that name no model."""

    def __init__(self, served: Sequence[ModelDeployment[DeploymentHandle]], server: ServerSettings) -> None:
        backlog = Backlog(one.settings.model_id for one in served)
        self._models = {one.settings.model_id: Model(one, server, backlog) for one in served}
        aliases = {alias: self._models[one.settings.model_id] for one in served for alias in one.settings.aliases}
        self.names = (*self._models, *aliases)
        """The models' ids, then their aliases."""
        self._by_name = _by_hub_id(served, self._models) | aliases | self._models
        self._decoders = Threads(DECODERS)
        self._reading, self._limit = 0, sum(model.admission.limit for model in self)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def find(self, name: str | None) -> Model:
        """The model of this id, alias or hub id, or the first for None. Raises ModelNotFound."""
        model = next(iter(self)) if name is None else self._by_name.get(name)
        if model is None:
            raise ModelNotFound(f"the model {name!r} is not served here; served are {', '.join(self.names)}")
        return model

    def check_room(self, asker: Asker) -> None:
        """Raises QueueFull if no model would admit even the smallest request. It is called before the body, which names
        the model, is read."""
        doors = [model.admission for model in self]
        refusals = [(one, door) for door in doors if (one := door.refusal(asker, 0.0)) is not None]
        if len(refusals) == len(doors):
            refusal, door = min(refusals, key=lambda pair: pair[0].after)
            raise door.turn_away(refusal)

    @contextmanager
    def reading(self, asker: Asker) -> Iterator[None]:
        """Holds a place for an upload while the body reads it: no more are read at once than requests are admitted.
        Raises QueueFull, also if no model would admit even the smallest request."""
        self.check_room(asker)
        if self._reading >= self._limit:
            raise QueueFull(f"{self._limit} uploads are being read already; try again later")
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    async def fitted(self, model: Model, files: Sequence[bytes], mask: bytes | None = None) -> list[Reference]:
        """The uploaded references, decoded and fitted; few at a time, since each may take 1 GB for a while. `mask`: of
        the first one. Raises InvalidRequest."""
        masks = (None if index else mask for index in range(len(files)))
        return await gathered(self._decoders.run(model.fit, *one) for one in zip(files, masks, strict=True))


def _by_hub_id(served: Sequence[ModelDeployment[DeploymentHandle]], models: Mapping[str, Model]) -> dict[str, Model]:
    """The models by hub ids; one that two models share, with other settings, names neither."""
    hub_ids = [one.settings.hub_id for one in served]
    return {
        hub_id: model
        for hub_id, model in zip(hub_ids, models.values(), strict=True)
        if hub_id and hub_ids.count(hub_id) == 1
    }
