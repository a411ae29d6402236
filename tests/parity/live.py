"""How much memory lives at a time, counted on the meta device, where it costs none."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightx2v.models.component import Component, Denoiser
from lightx2v.models.sampler import SamplingState, sample
from lightx2v.models.visits import Visits, together
from lightx2v.residency.lease import Room
from lightx2v.stages.cohort import room_for
from lightx2v.types import Conditioning, GenerateRequest, Latents

META = torch.device("meta")
CUDNN = 2.4 / 1.5
"""Measured at 1024 x 1024 in bf16: a decode's peak on a GPU over its live tensors."""


ACROSS = (torch.ops.aten.copy_, torch.ops.aten.index, torch.ops.aten.index_put_)
"""May have operands on the host and on a device."""


def shortened(component: Component) -> Any:
    """The component with two blocks of each kind. They are alike, so as much lives at a time as with all of them."""
    for blocks in component.module.children():
        if isinstance(blocks, torch.nn.ModuleList):
            del blocks[2:]
    return component


class LiveBytes(TorchDispatchMode):
    """Counts what lives on the meta device beside a component's own states; `peak` is the most at any time."""

    def __init__(self, component: Component) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {state.untyped_storage()._cdata for state in component.module.state_dict().values()}
        self.live = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuses what a GPU would, and not all of it is refused here: operands on two devices."""
        if len({leaf.device for leaf in tree_leaves((args, kwargs)) if _is_operand(leaf)}) > 1:
            assert function.overloadpacket in ACROSS, f"{function} of tensors on the host and on the device"
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device == META:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.live -= nbytes


def _is_operand(leaf: Any) -> bool:
    """A tensor of no dimensions counts as a number anywhere."""
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0


class Asked(NamedTuple):
    """A request with the inputs of its denoiser."""

    request: GenerateRequest
    conditioning: Conditioning
    references: Sequence[Latents] = ()

    def steps(self, denoiser: Denoiser[Any]) -> Visits[SamplingState[Any]]:
        state = denoiser.start(*self, META)
        return (yield from sample(state, denoiser.velocity, lambda: None))


def held(component: Component, jobs: Sequence[Callable[[], Visits[Any]]]) -> tuple[int, int]:
    """The most bytes that live at a pause, and that live at any time, while `jobs` pass the blocks together."""
    with torch.no_grad(), LiveBytes(component) as meter:
        most = 0
        for _ in together([job() for job in jobs]):
            most = max(most, meter.live)
    return most, meter.peak


def check_member(component: Component, request: GenerateRequest, job: Callable[[], Visits[Any]]) -> None:
    """What a member keeps is at most what it says, and not much less; two members find room in what both say."""
    member_bytes = component.member_bytes(request)
    alone, _ = held(component, (job,))
    assert 0.7 * member_bytes < alone <= member_bytes
    both, peak = held(component, (job, job))
    assert both <= 2 * member_bytes
    assert peak <= component.workspace(request) + member_bytes


def check_room(denoiser: Denoiser[Any], asked: Sequence[Asked]) -> None:
    """Members of several sizes find room in what the cohort says that they need."""
    rooms = [Room(denoiser.workspace(one.request), denoiser.member_bytes(one.request)) for one in asked]
    _, peak = held(denoiser, [partial(one.steps, denoiser) for one in asked])
    assert 0.7 * room_for(rooms) < peak <= room_for(rooms)
