"""Sends a request through the stage deployments, in the order of `lightx2v.stages.order`. A lost output is made once
more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import isawaitable
from typing import Any, NamedTuple, TypeVar

from ray.exceptions import ObjectLostError, RayTaskError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from deployments.messages import Terms
from deployments.remote import LOST, cause
from deployments.serving.concurrency import first, gathered
from deployments.serving.deadline import Deadline
from deployments.serving.least_times import LeastTimes
from lightx2v.errors import DeadlineExceeded, LightError, StageLost
from lightx2v.models.notices import Notice
from lightx2v.models.spec import ModelSpec
from lightx2v.stages.order import Step, brought, steps
from lightx2v.types import GenerateRequest, Picture, Reference, StageName, Video

T = TypeVar("T")

log = logging.getLogger(__name__)


class InputLost(Exception):
    """An input of a call was lost with the node that held it. The stage that fetched it found out."""


class Rank(NamedTuple):
    """The place of a request in the order of the stages, as in Terms."""

    priority: int = 0
    turn: float = 0.0


NORMAL = Rank()


class Graph:
    """A model's stage deployments. A stage's output goes to the next one by reference, not through this process."""

    def __init__(self, stages: Mapping[StageName, DeploymentHandle], spec: ModelSpec) -> None:
        self._stages = stages
        self._times = LeastTimes(spec)

    async def generate(
        self,
        requests: Sequence[GenerateRequest],
        references: Sequence[Reference],
        deadline: Deadline,
        rank: Rank = NORMAL,
    ) -> list[Picture | Video]:
        """One picture or video per request. All requests share a prompt and references, which are encoded once.

        The caller enforces `deadline`; it also limits how long a stage waits. Raises StageLost if a step was lost
        twice, DeadlineExceeded before the deadline if a step could not end in time, or the error of a stage.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                run = GraphRun(self._stages, self._times, requests[0], brought(references), deadline, rank, tasks)
                made = [tasks.create_task(run.make(request)) for request in requests]
        except ExceptionGroup as group:
            raise first(group) from None
        return [task.result() for task in made]

    async def truncations(self, request: GenerateRequest) -> tuple[Notice, ...]:
        """The prompts of `request` that its model cuts. Raises StageLost, or an error of the stage."""
        ask = self._stages["encode"].truncations.remote
        notices: tuple[Notice, ...] = await _twice("encode", request, lambda: _result(ask(request)))
        return notices

    async def ready(self) -> None:
        """Returns when every stage can serve; raises the error of one that cannot."""
        await gathered(_result(stage.ready.remote()) for stage in self._stages.values())


class GraphRun:
    """The steps of requests that share a prompt. Each output is made once; if one fails, `tasks` cancels the rest."""

    def __init__(
        self,
        stages: Mapping[StageName, DeploymentHandle],
        times: LeastTimes,
        leader: GenerateRequest,
        given: Mapping[str, Any],
        deadline: Deadline,
        rank: Rank,
        tasks: asyncio.TaskGroup,
    ) -> None:
        """`leader`: the request for which the shared outputs are made. `given`: the inputs that no step makes."""
        self._stages, self._times, self._leader, self._given = stages, times, leader, given
        self._deadline, self._rank, self._tasks = deadline, rank, tasks
        self._steps = {step.output: step for step in steps(stages)}
        self._outputs: dict[tuple[str, GenerateRequest], asyncio.Task[Any]] = {}
        self._admitted_at = time.time()

    async def make(self, request: GenerateRequest) -> Picture | Video:
        """The output of the last step for this request."""
        *_, last = self._steps
        made: Picture | Video = await (await self._output(last, request))
        return made

    def _output(self, name: str, request: GenerateRequest) -> asyncio.Task[Any]:
        """The task of a step, started by the first request that needs it."""
        step = self._steps[name]
        owner = self._leader if step.is_shared else request
        if (name, owner) not in self._outputs:
            self._outputs[name, owner] = self._tasks.create_task(self._make(step, owner))
        return self._outputs[name, owner]

    async def _make(self, step: Step, request: GenerateRequest) -> Any:
        """Makes one step. If an input is lost, the step that made it is called again, and then this one."""
        inputs = self._inputs(step, request)
        try:
            return await self._call(step, request, inputs)
        except InputLost as error:
            log.warning("request %s: making a lost input of %s again: %s", request.id, step.stage, error)
        self._forget(inputs)
        try:
            return await self._call(step, request, self._inputs(step, request))
        except InputLost as error:
            raise StageLost(f"the inputs of the {step.stage} stage were lost under this request, and again") from error

    def _inputs(self, step: Step, request: GenerateRequest) -> dict[str, Any]:
        """The inputs by field of StageInputs: each a value, or the task of the step that makes it."""
        return {
            field: self._given[name] if name in self._given else self._output(name, request)
            for field, name in step.inputs.items()
        }

    def _forget(self, inputs: Mapping[str, Any]) -> None:
        """Drops lost outputs, unless another request that shares them has done so."""
        self._outputs = {key: task for key, task in self._outputs.items() if task not in inputs.values()}

    async def _call(self, step: Step, request: GenerateRequest, inputs: Mapping[str, Any]) -> Any:
        """The finished response, or the last input if `only_if` skips the step. If the stage's process dies, it is
        called once more."""
        arguments = {name: await one if isinstance(one, asyncio.Task) else one for name, one in inputs.items()}
        *_, last = arguments.values()
        if step.only_if is not None and not step.only_if(await _value(last)):
            return last
        return await _twice(step.stage, request, lambda: self._attempt(step, request, arguments))

    async def _attempt(self, step: Step, request: GenerateRequest, arguments: Mapping[str, Any]) -> DeploymentResponse:
        """Calls a stage, which refuses to begin later than the steps from here on need. Raises DeadlineExceeded."""
        start, ahead = time.monotonic(), self._from(step)
        spare = self._deadline.left - self._times.of(ahead, request)
        try:
            if spare < 0:
                raise DeadlineExceeded(f"too little time is left for the {step.stage} stage")
            terms = Terms(self._admitted_at, spare, *self._rank)
            response = self._stages[step.stage].call.remote(step.method, request, terms, **arguments)
            await _result(response)
        except DeadlineExceeded:
            self._times.doubt(ahead)
            raise
        self._times.note(step, request, time.monotonic() - start)
        return response

    def _from(self, step: Step) -> list[Step]:
        """This step and the later ones that are always taken."""
        order = [*self._steps.values()]
        return [one for one in order[order.index(step) :] if one is step or one.only_if is None]


async def _twice(stage: StageName, request: GenerateRequest, attempt: Callable[[], Awaitable[T]]) -> T:
    """The result of a call of a stage; it is called once more if its process dies. Raises StageLost."""
    try:
        return await attempt()
    except LOST as error:
        log.warning("request %s: the %s stage died, calling it again: %s", request.id, stage, error)
    try:
        return await attempt()
    except LOST as error:
        raise StageLost(f"the {stage} stage died under this request, and again") from error


async def _value(made: Any) -> Any:
    """The value of a step's output, which is a response, or an input that was passed on. Raises InputLost."""
    try:
        return await made if isawaitable(made) else made
    except ObjectLostError as error:
        raise InputLost(str(error)) from None


async def _result(response: DeploymentResponse) -> Any:
    """The response's value. Cancels the call if the caller is cancelled. Raises the stage's error, or InputLost."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except RayTaskError as error:
        original = cause(error)
        if isinstance(original, ObjectLostError):
            raise InputLost(str(original)) from None
        raise original if isinstance(original, LightError) else error from None
