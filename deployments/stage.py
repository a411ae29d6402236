"""One generic deployment: a process around one stage of a model, on a share of a card."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

# Read when OpenMP is loaded, with torch: threads that spin at a barrier starve the other stages' on the same cores
# (20 steps of a small model beside two busy processes on 2 cores: 9.1 s spinning, 0.9 s passive).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Freed memory goes back to the driver page by page, whatever is still in use beside it.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import ray
import torch

from deployments.context import ProcessMemory
from deployments.directory import find_coordinator
from deployments.lease import CoordinatorClient
from deployments.logs import speak
from deployments.messages import Terms
from deployments.probes import CPU_CARD
from deployments.stage_weights import StageWeights
from deployments.tenants import Member
from deployments.wire import pack, unpack
from lightx2v.config import EngineSettings
from lightx2v.core import GenerateRequest, Progress, StageName
from lightx2v.residency.lease import Grant, Holder
from lightx2v.stages.build import load_stage, open_device
from lightx2v.stages.run import Control, StageInputs, StageMethod

Answer = asyncio.Future[Any]

log = logging.getLogger(__name__)


class StageServer:
    """Runs one job at a time, under a lease, in a thread that looks for a cancellation between pieces of work.

    A job is answered as soon as its output is on the host; its memory and its lease are given back after that.
    """

    async def __init__(self, stage: StageName, model: str, settings: EngineSettings, cuda: bool) -> None:  # type: ignore[misc]
        speak()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=stage)
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._broken: torch.AcceleratorError | None = None
        card_id = card_identity(cuda)
        self._device = await self._in_thread(open_device, "cuda" if cuda else "cpu", settings, card_id)
        self._stage = await self._in_thread(load_stage, stage, settings, self._device)
        size = self._stage.size(self._stage.planned)
        self._process_memory = ProcessMemory(card_id) if cuda else None
        context = self._process_memory.before_any_run() if self._process_memory else 0
        holder = Holder(uuid.uuid4().hex, model, stage, os.getpid(), context, size.reachable, _fingerprint(settings))
        member = Member(holder, size, settings.policy, settings.gpu_budget)
        self._weights = StageWeights(self._stage, self._thread)
        self._client = CoordinatorClient(member, partial(find_coordinator, card_id), self._weights)
        self._obedience = await self._client.start()

    async def call(self, method: StageMethod, request: GenerateRequest, terms: Terms, **inputs: Any) -> Any:
        """The packed output of `method`. `inputs`: fields of StageInputs, packed.

        Cancelling it ends the work at its next step.
        """
        if method == "run" and (known := self._stage.recall(request)) is not None:
            return pack(known)
        answer: Answer = self._loop.create_future()
        work = partial(self._work, method, request, StageInputs(**inputs), answer)
        running = self._client.apart(self._run(work, request, terms))
        running.add_done_callback(partial(_conclude, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            running.cancel()
            raise

    async def ready(self) -> None:
        """Returns when this stage could serve a request; raises what keeps it from that."""
        await self._client.ready()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The replicas of this stage that the card has room for; the scaling policy reads it."""
        return {"max_replicas": float(await self._client.max_replicas())}

    def check_health(self) -> None:
        """Raises RuntimeError when Serve has to start this process anew.

        A stage that no longer gives way would dead-lock the card, and after a device error nothing runs here.
        """
        if self._obedience.done():
            raise RuntimeError(f"this stage no longer gives way: {self._obedience.exception()!r}")
        if self._broken is not None:
            raise RuntimeError(f"the device failed under this process: {self._broken}")

    async def _run(self, work: Callable[[Grant, Control], None], request: GenerateRequest, terms: Terms) -> None:
        """Runs `work` under a lease. The process is weighed after that, while the next run may have its turn."""
        cancelled, start, activation_bytes = threading.Event(), time.monotonic(), self._stage.activation_bytes(request)
        async with self._turn, self._client.lease(activation_bytes, terms.since(start)) as lease, self._weights.lock:
            control = Control(cancelled.is_set, partial(self._report, request))
            try:
                await self._to_the_end(partial(work, lease, control), cancelled)
            finally:
                self._client.holds(self._stage.resident)
        await self._weigh()

    async def _weigh(self) -> None:
        if self._process_memory is not None:
            async with self._weights.lock:
                context = await self._in_thread(self._process_memory.at_rest, self._stage.resident)
            if context is not None:
                await self._client.weigh(context)

    async def _to_the_end(self, work: Callable[[], None], cancelled: threading.Event) -> None:
        """Waits until the thread has ended `work`, also when the caller goes away: until then the memory is in use."""
        running = asyncio.ensure_future(self._in_thread(work))
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                cancelled.set()
        if isinstance(error := running.exception(), torch.AcceleratorError):
            self._broken = error
        if cancelled.is_set():
            raise asyncio.CancelledError
        running.result()

    def _work(
        self,
        method: StageMethod,
        request: GenerateRequest,
        packed: StageInputs,
        answer: Answer,
        grant: Grant,
        control: Control,
    ) -> None:
        """Runs in the thread of the stage, and answers while the stage still has its grant."""
        run = self._stage.method(method)

        def work(request: GenerateRequest, inputs: StageInputs, control: Control) -> None:
            self._answer(answer, run(request, inputs, control))

        blocks = self._stage.method_blocks(method)
        self._stage.perform(grant, work, request, unpack(packed), control, blocks=blocks)

    def _answer(self, answer: Answer, output: Any) -> None:
        """Hands an output from the thread of the stage to the call that waits for it."""
        self._loop.call_soon_threadsafe(_resolve, answer, pack(output))

    def _report(self, request: GenerateRequest, progress: Progress) -> None:
        """Passes the progress of a video on. A picture is the answer to its request: nobody can ask how far it is."""
        log.debug("request %s: step %d of %d", request.id, progress.step, progress.total)
        if request.frames > 1:
            self._loop.call_soon_threadsafe(self._client.advance, request.id, progress)

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def _resolve(answer: Answer, output: Any) -> None:
    if not answer.done():
        answer.set_result(output)


def _conclude(answer: Answer, running: asyncio.Task[None]) -> None:
    """Gives an error to the call that waits for the answer. If that has been answered or has gone, it is logged."""
    if running.cancelled():
        answer.cancel()
    elif (error := running.exception()) is not None and not answer.done():
        answer.set_exception(error)
    elif error is not None:
        log.error("a job failed when it had been answered or given up", exc_info=error)


def _fingerprint(settings: EngineSettings) -> str:
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16]


def card_identity(cuda: bool) -> str:
    """The GPU's uuid as the driver spells it, or this node's cpu card."""
    if cuda:
        return f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    return f"{CPU_CARD}{ray.get_runtime_context().get_node_id()}"
