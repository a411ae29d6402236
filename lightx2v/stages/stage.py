"""What all stages share: one component, its weights, and the right to device memory for the time of a run."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from lightx2v.config import EngineSettings
from lightx2v.core import GenerateRequest, StageName
from lightx2v.errors import Cancelled, OutOfMemory
from lightx2v.models.component import Component
from lightx2v.models.fp8 import flops, workspace
from lightx2v.residency.plan import StageSize
from lightx2v.weights.device import Device
from lightx2v.weights.host import HostCopy, OnDisk
from lightx2v.weights.index import read_index
from lightx2v.weights.layout import make_layout
from lightx2v.weights.weight_residency import WeightResidency

C = TypeVar("C", bound=Component)
R = TypeVar("R")
Cancel = Callable[[], bool]
"""Asked between two pieces of work; True ends the run with Cancelled."""

HIDDEN = 0.9
"""Of what the link carries while blocks compute, the share that a plan takes for hidden: nearer to all of it every
pause shows on both sides (measured on an H100, Z-image: 5.1 GB a step where it carries 5.2 took 9 to 15 % longer)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Grant:
    """Device bytes for one run: `weights` may be resident while it lasts, `keep` of them after it. `workspace` is all
    else: activations, and the slot of the units that stream."""

    weights: int
    workspace: int
    keep: int


class Stage(Generic[C]):
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
        folders = (component.folder, *component.more_folders)
        layout = make_layout(component, read_index(*(checkpoint / folder for folder in folders)), blocks)
        source = OnDisk(layout) if settings.lazy_load else HostCopy(layout, device.pinned)
        ahead = self._behind(planned) // max(1, len(blocks))
        self._residence = WeightResidency(component, layout, source, device, ahead)

    @property
    def resident(self) -> int:
        """Device bytes of weights now."""
        return self._residence.nbytes

    @property
    def reachable(self) -> int:
        """Device bytes of all weights that a run can read."""
        return self._residence.reachable

    @property
    def slot(self) -> int:
        """Device bytes that streaming takes."""
        return self._residence.slot

    @property
    def rest(self) -> int:
        """Device bytes of what a run needs throughout: the least it can hold."""
        return self.device.cost(self._residence.layout.rest.nbytes)

    def workspace(self, request: GenerateRequest) -> int:
        """Device bytes beside weights for `request`."""
        return workspace(self.component, request)

    def size(self, request: GenerateRequest) -> StageSize:
        """What the plan must know for a request like this one."""
        _, *blocks = self._residence.units
        units = tuple(self.device.cost(unit.nbytes) for unit in blocks)
        uses, behind = max(1, self.uses(request)), int(HIDDEN * self._behind(request))
        return StageSize(self.name, units, self.rest, self.workspace(request), self.slot, uses, behind)

    def passes(self, request: GenerateRequest) -> int:
        """How often a run uses every block; 0 where the request has no need of this stage."""
        return 1

    def uses(self, request: GenerateRequest) -> int:
        """The same of a request that comes after others like it."""
        return self.passes(request)

    def blocks(self, job: str) -> Collection[str]:
        """Paths of the submodules that a job, by its method's name, enters: nothing is brought for the others."""
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
        job: Callable[..., R],
        request: GenerateRequest,
        *inputs: Any,
        blocks: Collection[str] | None = None,
    ) -> R:
        """`job` of this stage within `grant`; it enters `blocks` of the component, or all. If memory runs out, once
        more with the least weights resident: the bytes of all others are workspace then. Raises OutOfMemory if there
        was nothing to give back."""
        try:
            with self._granted(grant, self.passes(request), blocks):
                return job(request, *inputs)
        except OutOfMemory as error:
            if grant.weights <= self.rest:
                raise
            log.warning("%s: %s; again with its weights streamed", self.name, error)
        freed = grant.weights - self.rest
        least = Grant(self.rest, grant.workspace + freed, min(grant.keep, self.rest))
        with self._granted(least, self.passes(request), blocks):
            return job(request, *inputs)

    @contextmanager
    def _granted(self, grant: Grant, passes: int, blocks: Collection[str] | None) -> Iterator[None]:
        """Within: weights placed as granted, the others stream. After: only `keep` stays, also after a failure."""
        held = self.drop(grant.weights)
        slot = self.slot if grant.weights < self.reachable else 0
        try:
            with (
                torch.inference_mode(),
                self.device.workspace(grant.weights - held + slot, grant.workspace - slot),
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

    def _behind(self, request: GenerateRequest) -> int:
        """Bytes that arrive while all blocks are used once."""
        return self.device.behind(flops(self.component, request))


def check(cancelled: Cancel) -> None:
    """Raises Cancelled if the caller is gone."""
    if cancelled():
        raise Cancelled("the caller went away")


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
