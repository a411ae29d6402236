"""The base of all stages: one component, its weights, and device memory for the time of a run."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from lightx2v.config import EngineSettings
from lightx2v.errors import OutOfMemory
from lightx2v.models.component import Component
from lightx2v.models.notices import Notice
from lightx2v.models.packed import keep_packed
from lightx2v.models.visits import Visits, within
from lightx2v.residency.lease import Grant, Room
from lightx2v.residency.plan import StageSize
from lightx2v.stages.cohort import Cohort, Member, let_go
from lightx2v.stages.interface import Control, StageInputs, StageMethod, StageRun
from lightx2v.types import GenerateRequest, StageName
from lightx2v.weights.device import Device
from lightx2v.weights.layout import Layout, make_layout
from lightx2v.weights.single_file import read_weights
from lightx2v.weights.weight_residency import WeightResidency

C = TypeVar("C", bound=Component)

OVERLAP_SHARE = 0.9
"""The share of the link's capacity, while blocks compute, that a plan uses. Closer to 1, every pause of either side
shows (H100, Z-Image: streaming 5.1 GB a step, of a capacity of 5.2, took 9 to 15 % longer)."""

MANY_BLOCKS = 8
"""From so many blocks on, a stage that uses each once has room for a second one in its ring, so that it comes while a
cohort computes. What is placed for a single use saves no bytes, so the room costs nothing, but for the least card."""

log = logging.getLogger(__name__)


class Stage(ABC, Generic[C]):
    """One component on one device. It runs with any part of its weights resident, and streams the rest.

    `places`: the folders or files with its weights. `planned`: the request for which its share of the card is planned.
    """

    name: StageName

    def __init__(
        self,
        component: C,
        places: Sequence[Path],
        settings: EngineSettings,
        device: Device,
        planned: GenerateRequest,
    ) -> None:
        self.component = component
        self.device = device
        self.planned = planned
        index = read_weights(component, places)
        keep_packed(component, index)
        blocks = _phases(component) if settings.by_phase else component.blocks
        if settings.compiles(cuda=device.torch_device.type == "cuda"):
            component.compile()
        layout = make_layout(component, index, blocks)
        self.host_bytes = layout.host.nbytes if settings.lazy_load else layout.nbytes
        """Host bytes of the weights: all of them, or with `lazy_load` only those that never leave the host."""
        source = device.host_source(layout, settings.lazy_load)
        ahead = self._ahead(planned, layout)
        # The parts of a block are used in turn by one member before the next, so by phase there is no visit to share.
        self._max_width = 1 if settings.by_phase else settings.max_cohort
        self._residence = WeightResidency(component, layout, source, device, ahead)

    @property
    def unit_paths(self) -> tuple[str, ...]:
        """The paths of the submodules whose weights come and go."""
        return tuple(unit.name for unit in self._residence.layout.blocks)

    @property
    def resident(self) -> int:
        """Device bytes of the weights that are resident now."""
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
        """Device bytes of the weights outside the blocks, which a run needs throughout: the least it can hold."""
        return self.device.cost(self._residence.layout.rest.nbytes)

    def activation_bytes(self, request: GenerateRequest) -> int:
        """Device bytes that a run takes besides its weights and the slot."""
        return self.component.workspace(request)

    def member_bytes(self, request: GenerateRequest) -> int:
        """Device bytes of those that a request keeps while another member of its cohort computes."""
        return self.component.member_bytes(request)

    def room(self, request: GenerateRequest) -> Room:
        """Device bytes of a request besides weights."""
        return Room(self.activation_bytes(request), self.member_bytes(request))

    def work(self, request: GenerateRequest) -> float:
        """The work of one round of a request, to be compared with others of this stage: operations, where they are
        known."""
        return self.component.flops(request) or 1.0

    def size(self, request: GenerateRequest) -> StageSize:
        """The sizes that the plan needs, for a request like this one."""
        _, *blocks = self._residence.units
        units = tuple(self.device.cost(unit.nbytes) for unit in blocks)
        passes, overlap_bytes = max(1, self.planned_passes(request)), int(OVERLAP_SHARE * self._overlap_bytes(request))
        activation_bytes, member_bytes = self.activation_bytes(request), self.member_bytes(request)
        return StageSize(
            self.name,
            units,
            self.rest,
            activation_bytes,
            self.slot_bytes,
            passes,
            overlap_bytes,
            member_bytes,
            self._max_width,
        )

    @abstractmethod
    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Visits[Any]:
        """The output of the stage for `inputs`, on the host. It runs within a grant only. Raises Cancelled."""

    def method(self, name: StageMethod) -> StageRun:
        """The method of this name. Raises ValueError if the stage does not have it."""
        if name == "run":
            return self.run
        raise ValueError(f"the {self.name} stage has no method {name!r}")

    def passes(self, request: GenerateRequest) -> int:
        """The rounds that a request takes here, in each of which it uses every block once; 0 if it uses none."""
        return 1

    def planned_passes(self, request: GenerateRequest) -> int:
        """The rounds, if similar requests came before it."""
        return self.passes(request)

    def method_blocks(self, name: StageMethod) -> Collection[str]:
        """The paths of the blocks that a method enters. No weights are fetched for other blocks."""
        return self.component.blocks

    def recall(self, request: GenerateRequest) -> Any:
        """The output of `run` if it is cached, so that it takes no run and no memory; else None."""
        return None

    def truncations(self, request: GenerateRequest) -> tuple[Notice, ...]:
        """The prompts of which this stage reads only a part. It needs no memory, but one thread at a time."""
        return ()

    def drop(self, nbytes: int) -> int:
        """Keeps at most `nbytes` of weights resident; returns the resident bytes."""
        self._residence.drop(nbytes)
        return self.resident

    def fetch(self, nbytes: int) -> int:
        """Fetches weights until at most `nbytes` are resident; returns the resident bytes, which may still be on their
        way."""
        try:
            with torch.inference_mode(), self.device.growth(nbytes - self.resident):
                self._residence.place(nbytes)
        except OutOfMemory as error:
            log.warning("%s fetched nothing: %s", self.name, error)
            let_go(error)
            self.device.trim()
        return self.resident

    def member(
        self,
        method: StageMethod,
        request: GenerateRequest,
        inputs: StageInputs,
        control: Control,
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> Member:
        """A job of this stage, for a cohort."""
        return Member(
            self._visits(method, request, inputs, control),
            self.passes(request),
            self.room(request),
            done,
            failed,
        )

    def perform(
        self, grant: Grant, method: StageMethod, request: GenerateRequest, inputs: StageInputs, control: Control
    ) -> Any:
        """The result of one job that has the stage to itself, within `grant`.

        If memory runs out, the job runs once more with the least weights resident. Raises OutOfMemory if no weights can
        make room.
        """
        try:
            return self._alone(grant, method, request, inputs, control)
        except OutOfMemory as error:
            if grant.weights <= self.rest:
                raise
            log.warning("%s: %s; again with its weights streamed", self.name, error)
        return self._alone(self.least(grant), method, request, inputs, control)

    def least(self, grant: Grant) -> Grant:
        """The grant of the same bytes with the least weights resident; those of the others go to activations."""
        free = grant.weights - self.rest + grant.extra_bytes
        return replace(
            grant,
            weights=self.rest,
            activation_bytes=free - self.slot_bytes,
            slot_bytes=self.slot_bytes,
            keep=min(grant.keep, self.rest),
        )

    @contextmanager
    def granted(self, grant: Grant, method: StageMethod) -> Iterator[Cohort]:
        """A cohort for jobs of `method`, while the granted weights are in place and the others stream. After the body
        or its failure, only `keep` bytes of weights stay."""
        held = self.drop(grant.weights)
        try:
            with (
                torch.inference_mode(),
                self.device.run_limits(grant.weights - held + grant.slot_bytes, grant.activation_bytes),
                self._residence.running(grant.weights, self.method_blocks(method), grant.keep),
            ):
                yield Cohort(self._residence.begin, grant.activation_bytes, grant.width)
        except BaseException as error:
            let_go(error)
            raise
        finally:
            self.drop(grant.keep)

    def _alone(
        self, grant: Grant, method: StageMethod, request: GenerateRequest, inputs: StageInputs, control: Control
    ) -> Any:
        made: list[Any] = []
        with self.granted(grant, method) as cohort:
            cohort.join(self.member(method, request, inputs, control, made.append, _reraise))
            while cohort.members:
                cohort.run_round(others_wait=False)
        return made[0]

    def _visits(
        self, method: StageMethod, request: GenerateRequest, inputs: StageInputs, control: Control
    ) -> Visits[Any]:
        """The job's work. Raises OutOfMemory where the device has too little."""
        return within(self.device.memory_errors, self.method(method)(request, inputs, control))

    def close(self) -> None:
        """Returns device and host memory."""
        self._residence.close()

    def _ahead(self, planned: GenerateRequest, layout: Layout) -> int:
        """Bytes that should come while one block computes."""
        count = len(layout.blocks)
        if self.planned_passes(planned) == 1 and count >= MANY_BLOCKS:
            return max(unit.nbytes for unit in layout.blocks)
        return self._overlap_bytes(planned) // max(1, count)

    def _overlap_bytes(self, request: GenerateRequest) -> int:
        """Bytes that the link carries while all blocks are used once. If the work is unknown: 0, without measuring."""
        count = self.component.flops(request)
        return self.device.overlap_bytes(count) if count else 0


def _reraise(error: Exception) -> None:
    raise error


def _phases(component: Component) -> tuple[str, ...]:
    """The paths of the parts of every block that are called one by one, in the order in which the block holds them."""
    return tuple(path for block in component.blocks for path in _called(component.module, block))


def _called(module: nn.Module, parent: str) -> Iterator[str]:
    for name, child in module.get_submodule(parent).named_children():
        path = f"{parent}.{name}"
        if isinstance(child, nn.ModuleList):
            yield from _called(module, path)
        else:
            yield path
