"""The way of one request through the stages: encode, denoise, refine where a model has it, decode; with a deadline, a
cancellation and one retry."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from deployments.messages import Terms
from lightx2v.core import GenerateRequest, Picture, Reference, StageName, Video
from lightx2v.errors import DeadlineExceeded, LightError, StageLost
from lightx2v.stages.run import StageMethod

LOST = (RayActorError, OutOfMemoryError, DeploymentUnavailableError)
"""What a call raises whose process is gone; the second when Ray's memory monitor of the host killed it."""

log = logging.getLogger(__name__)


class Graph:
    """A model's stage deployments. What a stage returns is sent to the next by reference, not from here."""

    def __init__(self, stages: Mapping[StageName, DeploymentHandle]) -> None:
        self._stages = stages

    async def generate(
        self, requests: Sequence[GenerateRequest], references: Sequence[Reference], seconds: float
    ) -> list[Picture | Video]:
        """One picture or video per request; all have the same prompt and references, which are encoded once.

        Raises DeadlineExceeded after `seconds`, StageLost if a stage died twice, or what a stage raised.
        """
        seen = tuple(reference.seen for reference in references if reference.seen is not None)
        fitted = tuple(reference.fitted for reference in references)
        journey = Journey(time.time(), time.monotonic() + seconds)
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                conditioning = tasks.create_task(
                    journey.call(self._stages["encode"], "run", requests[0], pictures=seen)
                )
                encoded = tasks.create_task(self._encoded(journey, requests[0], fitted))
                made = [tasks.create_task(self._make(journey, request, conditioning, encoded)) for request in requests]
        except TimeoutError:
            raise DeadlineExceeded(f"not made within {seconds:g} s") from None
        except ExceptionGroup as group:
            raise _first(group) from None
        return [task.result() for task in made]

    async def ready(self) -> None:
        """Returns when every stage answers that it can serve; raises what keeps one from it."""
        await asyncio.gather(*(_result(stage.ready.remote()) for stage in self._stages.values()))

    async def _encoded(self, journey: Journey, request: GenerateRequest, pictures: tuple[Picture, ...]) -> Any:
        return await journey.call(self._stages["decode"], "encode", request, pictures=pictures) if pictures else ()

    async def _make(
        self,
        journey: Journey,
        request: GenerateRequest,
        conditioning: asyncio.Task[DeploymentResponse],
        encoded: asyncio.Task[Any],
    ) -> Picture | Video:
        stages, inputs = self._stages, {"conditioning": await conditioning, "references": await encoded}
        latents = await journey.call(stages["denoise"], "run", request, **inputs)
        if "refine" in stages and (await latents).history:
            latents = await journey.call(stages["refine"], "run", request, **inputs, latents=latents)
        made: Picture | Video = await (await journey.call(stages["decode"], "run", request, latents=latents))
        return made


class Journey:
    """One request on its way: when it was admitted and its deadline."""

    def __init__(self, admitted_at: float, deadline: float) -> None:
        self._admitted_at, self._deadline = admitted_at, deadline

    async def call(self, stage: DeploymentHandle, method: StageMethod, request: GenerateRequest, **inputs: Any) -> Any:
        """The finished response of a stage. A stage whose process died is called once more, with the same inputs."""
        try:
            return await self._attempt(stage, method, request, **inputs)
        except LOST as error:
            log.warning("request %s: the process of its %s stage died: %s", request.id, stage.deployment_name, error)
        try:
            return await self._attempt(stage, method, request, **inputs)
        except LOST as error:
            raise StageLost(f"the {stage.deployment_name} stage died under this request, and again") from error

    async def _attempt(
        self, stage: DeploymentHandle, method: StageMethod, request: GenerateRequest, **inputs: Any
    ) -> Any:
        terms = Terms(self._admitted_at, self._deadline - time.monotonic())
        response = stage.call.remote(method, request, terms, **inputs)
        await _result(response)
        return response


async def _result(response: DeploymentResponse) -> Any:
    """The response's value. Cancels the call when the caller goes away; raises what the stage raised."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, LightError) else error from None


def _first(group: ExceptionGroup) -> Exception:
    """What failed first; the other tasks were cancelled for it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
