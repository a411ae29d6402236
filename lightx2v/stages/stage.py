"""What all stages share: one component, its weights, and device memory for the time of a run."""

from __future__ import annotations

import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, TypeVarTuple

import torch
from torch import nn

from lightx2v.config import EngineSettings
from lightx2v.core import GenerateRequest, StageName
from lightx2v.errors import OutOfMemory
from lightx2v.models.component import Component
from lightx2v.residency.lease import Grant
from lightx2v.residency.plan import StageSize
from lightx2v.stages.run import Control, StageInputs, StageMethod, StageRun
from lightx2v.weights.device import Device
from lightx2v.weights.host import HostCopy, OnDisk
from lightx2v.weights.index import read_index
from lightx2v.weights.layout import make_layout
from lightx2v.weights.weight_residency import WeightResidency

C = TypeVar("C", bound=Component)
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

OVERLAP_SHARE = 0.9
"""The share of what the link can carry while blocks compute that a plan counts on: nearer to all of it every pause
shows on both sides (measured on an H100, Z-image: 5.1 GB a step where it carries 5.2 took 9 to 15 % longer)."""

log = logging.getLogger(__name__)


class Stage(ABC, Generic[C]):
    """One component on one device. Runs with any part of its weights resident and streams the others.

    `planned`: the request that its share of the card is planned for."""

    name: StageName

    def __init__(
        self, component: C, checkpoint: Path, settings: EngineSettings, device: Device, planned: GenerateRequest
    ) -> None:
        self.component = component
        self.device = device
        self.planned = planned
        blocks = _phases(component) if settings.by_phase else component.blocks
        if settings.compiles(cuda=device.torch_device.type == "cuda"):
            component.compile()
        layout = make_layout(
            component, read_index(*(checkpoint / folder for folder in component.weights.folders)), blocks
        )
        source = OnDisk(layout) if settings.lazy_load else HostCopy(layout, device.pinned)
        overlap_bytes = self._overlap_bytes(planned) // max(1, len(blocks))
        self._residence = WeightResidency(component, layout, source, device, overlap_bytes)

    @property
    def resident(self) -> int:
        """Device bytes of weights now."""
        return self._residence.nbytes

    @property
    def reachable(self) -> int:
        """Device bytes of all weights that a run can read."""
        return self._residence.reachable

    @property
    def slot_bytes(self) -> int:
        """Device bytes of the ring through which units stream."""
        return self._residence.slot

    @property
    def rest(self) -> int:
        """Device bytes of what a run needs throughout: the least it can hold."""
        return self.device.cost(self._residence.layout.rest.nbytes)

    def activation_bytes(self, request: GenerateRequest) -> int:
        """Device bytes that a run takes besides weights and the slot."""
        return self.component.workspace(request)

    def size(self, request: GenerateRequest) -> StageSize:
        """What the plan must know for a request like this one."""
        _, *blocks = self._residence.units
        units = tuple(self.device.cost(unit.nbytes) for unit in blocks)
        passes, overlap_bytes = max(1, self.planned_passes(request)), int(OVERLAP_SHARE * self._overlap_bytes(request))
        activation_bytes = self.activation_bytes(request)
        return StageSize(self.name, units, self.rest, activation_bytes, self.slot_bytes, passes, overlap_bytes)

    @abstractmethod
    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Any:
        """What the stage makes of `inputs`, on the host. To be called by `perform`. Raises Cancelled."""

    def method(self, name: StageMethod) -> StageRun:
        """The method that is asked for by this name. Raises ValueError if the stage does not have it."""
        if name == "run":
            return self.run
        raise ValueError(f"the {self.name} stage has no method {name!r}")

    def passes(self, request: GenerateRequest) -> int:
        """How often a run uses every block; 0 where the request has no need of this stage."""
        return 1

    def planned_passes(self, request: GenerateRequest) -> int:
        """How often a run of a request that comes after others like it uses every block."""
        return self.passes(request)

    def method_blocks(self, name: StageMethod) -> Collection[str]:
        """Paths of the blocks that a method enters. No weights are brought for the others."""
        return self.component.blocks

    def recall(self, request: GenerateRequest) -> Any:
        """What `run` would return, if that is known without a run and without memory; else None."""
        return None

    def drop(self, nbytes: int) -> int:
        """Keeps at most `nbytes` of weights resident; returns what is."""
        self._residence.drop(nbytes)
        return self.resident

    def fetch(self, nbytes: int) -> int:
        """Brings weights until at most `nbytes` are resident; returns what is, some of it still on its way."""
        try:
            with torch.inference_mode(), self.device.growth(nbytes - self.resident):
                self._residence.place(nbytes)
        except OutOfMemory as error:
            log.warning("%s fetched nothing: %s", self.name, error)
            _let_go(error)
            self.device.trim()
        return self.resident

    def perform(
        self,
        grant: Grant,
        job: Callable[[GenerateRequest, *Ts], R],
        request: GenerateRequest,
        *inputs: *Ts,
        blocks: Collection[str] | None = None,
    ) -> R:
        """`job` of this stage within `grant`. It enters `blocks` of the component, or all.

        If memory runs out, it is done once more with the least weights resident; the bytes of all others are for
        activations then. Raises OutOfMemory if there was nothing to give back.
        """
        try:
            with self._granted(grant, self.passes(request), blocks):
                return job(request, *inputs)
        except OutOfMemory as error:
            if grant.weights <= self.rest:
                raise
            log.warning("%s: %s; again with its weights streamed", self.name, error)
        free = grant.weights - self.rest + grant.extra_bytes
        least = Grant(self.rest, free - self.slot_bytes, self.slot_bytes, min(grant.keep, self.rest))
        with self._granted(least, self.passes(request), blocks):
            return job(request, *inputs)

    @contextmanager
    def _granted(self, grant: Grant, passes: int, blocks: Collection[str] | None) -> Iterator[None]:
        """Within: weights placed as granted, the others stream. After: only `keep` stays, also after a failure."""
        held = self.drop(grant.weights)
        try:
            with (
                torch.inference_mode(),
                self.device.run_limits(grant.weights - held + grant.slot_bytes, grant.activation_bytes),
                self._residence.running(grant.weights, passes, blocks, grant.keep),
            ):
                yield
        except BaseException as error:
            _let_go(error)
            raise
        finally:
            self.drop(grant.keep)

    def close(self) -> None:
        """Gives up device and host memory."""
        self._residence.close()

    def _overlap_bytes(self, request: GenerateRequest) -> int:
        """Bytes that arrive while all blocks are used once. Nothing is measured where nothing is known of the use."""
        count = self.component.flops(request)
        return self.device.overlap_bytes(count) if count else 0


def _let_go(error: BaseException | None) -> None:
    """Clears the frames that an error holds on to: activations in them would outlive the lease."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _phases(component: Component) -> tuple[str, ...]:
    """The parts of every block that are called one by one, in the order in which the block holds them."""
    return tuple(path for block in component.blocks for path in _called(component.module, block))


def _called(module: nn.Module, parent: str) -> Iterator[str]:
    for name, child in module.get_submodule(parent).named_children():
        path = f"{parent}.{name}"
        if isinstance(child, nn.ModuleList):
            yield from _called(module, path)
        else:
            yield path
