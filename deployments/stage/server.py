"""The deployment of a stage: a process that runs one stage of a model on a share of a card."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

# OpenMP reads this when torch loads it. Threads that spin at a barrier starve other stages on the same cores (20 steps
# of a small model beside two busy processes on 2 cores: 9.1 s spinning, 0.9 s passive).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Freed memory returns to the driver page by page, even if the pages beside it are in use.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import ray
import torch

from deployments.card.lookup import find_coordinator
from deployments.card.members import Member, starting
from deployments.card.memory_probe import CPU_CARD
from deployments.logs import configure_logging
from deployments.messages import Terms
from deployments.stage.cohort_runner import CohortRunner
from deployments.stage.coordinator_client import CoordinatorClient
from deployments.stage.jobs import Job
from deployments.stage.process_memory import STARTING_BYTES, ProcessMemory
from deployments.stage.weights import StageWeights
from deployments.stage.wire import pack, unpack
from lightx2v.config import EngineSettings
from lightx2v.errors import DeadlineExceeded, OutOfMemory
from lightx2v.models.notices import Notice
from lightx2v.residency.lease import Holder, Room, Work
from lightx2v.stages.build import load_stage, open_device
from lightx2v.stages.interface import StageInputs, StageMethod
from lightx2v.types import GenerateRequest, StageName

START_SECONDS = 60.0
"""The longest time for other stages to make room for a process that starts."""

log = logging.getLogger(__name__)


class StageServer:
    """Runs jobs in cohorts, under leases, in a thread that checks for cancellation between pieces of work.

    A job is answered as soon as its output is on the host. The memory and the lease are returned after the last one.
    """

    _jobs: CohortRunner

    async def __init__(self, stage: StageName, model: str, settings: EngineSettings, cuda: bool) -> None:  # type: ignore[misc]
        configure_logging()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=stage)
        card_id = card_identity(cuda)
        holder = Holder(uuid.uuid4().hex, model, stage, os.getpid(), 0, 0, _fingerprint(settings))
        self._weights = StageWeights(self._thread)
        find = partial(find_coordinator, card_id)
        starting_member = starting(holder, settings.gpu_budget)
        self._client = CoordinatorClient(starting_member, find, self._weights, lambda: self._jobs.recall())
        self._obedience = await self._client.start()
        async with self._room_to_start(STARTING_BYTES if cuda else 0):
            self._device = await self._in_thread(open_device, "cuda" if cuda else "cpu", settings, card_id)
            self._stage = self._weights.stage = await self._in_thread(load_stage, stage, settings, self._device)
            self._jobs = CohortRunner(self._stage, self._client, self._weights, self._thread, self._weigh)
            self._process_memory = ProcessMemory(card_id) if cuda else None
            context = self._process_memory.before_any_run() if self._process_memory else 0
            size = self._stage.size(self._stage.planned)
            holder = replace(holder, context=context, reachable=size.reachable)
            await self._client.introduce(Member(holder, size, settings.policy, settings.gpu_budget))
        self._running = asyncio.create_task(self._jobs.run())

    @asynccontextmanager
    async def _room_to_start(self, nbytes: int) -> AsyncIterator[None]:
        """Leases the memory of a CUDA context while the stage is loaded. If it is refused, the stage is loaded anyway:
        its first run is then refused with figures."""
        async with AsyncExitStack() as stack:
            room, work = Room(nbytes, 0), Work(1, 0.0, time.time())
            try:
                if nbytes:
                    await stack.enter_async_context(self._client.lease(room, work, START_SECONDS))
            except (OutOfMemory, DeadlineExceeded) as error:
                log.warning("loading the stage although the card has no room for its process: %s", error)
            yield

    async def call(self, method: StageMethod, request: GenerateRequest, terms: Terms, **inputs: Any) -> Any:
        """The packed output of `method`. `inputs`: fields of StageInputs, packed.

        A cancelled call ends its work at the next step.
        """
        if method == "run" and (known := self._stage.recall(request)) is not None:
            return pack(known)
        stage, answer = self._stage, asyncio.get_running_loop().create_future()
        room, rounds, work = stage.room(request), stage.passes(request), stage.work(request)
        unpacked = await asyncio.to_thread(unpack, StageInputs(**inputs))
        job = Job(method, request, unpacked, terms, room, rounds, work, answer)
        self._jobs.submit(job)
        try:
            return await answer
        except asyncio.CancelledError:
            self._jobs.cancel(job)
            raise

    async def truncations(self, request: GenerateRequest) -> tuple[Notice, ...]:
        """The prompts of a request that this stage would cut. It takes no lease, but a turn in the stage's thread."""
        notices: tuple[Notice, ...] = await self._in_thread(self._stage.truncations, request)
        return notices

    async def ready(self) -> None:
        """Returns if this stage can serve a request. Raises OutOfMemory if the budget is too small for its model."""
        await self._client.ready()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The number of replicas of this stage that the card has room for; the scaling policy reads it."""
        return {"max_replicas": float(await self._client.max_replicas())}

    def check_health(self) -> None:
        """Raises RuntimeError if Serve has to restart this process.

        A stage that ignores commands would dead-lock the card, and after a device error nothing runs here.
        """
        for name, task in (("follows commands", self._obedience), ("takes jobs", self._running)):
            if task.done():
                raise RuntimeError(f"this stage no longer {name}: {task.exception()!r}")
        if self._jobs.failure is not None:
            raise RuntimeError(f"the device failed under this process: {self._jobs.failure}")

    async def _weigh(self) -> None:
        if self._process_memory is not None:
            async with self._weights.lock:
                context = await self._in_thread(self._process_memory.at_rest, self._stage.resident)
            if context is not None:
                await self._client.weigh(context)

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def _fingerprint(settings: EngineSettings) -> str:
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16]


def card_identity(cuda: bool) -> str:
    """The id of this process's card: the GPU's uuid as the driver spells it, or the CPU card of this node."""
    if cuda:
        return f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    return f"{CPU_CARD}{ray.get_runtime_context().get_node_id()}"
