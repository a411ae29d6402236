"""The units of a component that are resident on the device, and the streaming of the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from lightx2v.weights.device import Device, Moment
from lightx2v.weights.host_copy import Source
from lightx2v.weights.layout import Entry, Layout, Loadable, Unit, view
from lightx2v.weights.placement_order import placement_order
from lightx2v.weights.ring import Ring, ring_bytes


@dataclass(frozen=True, slots=True)
class Binding:
    """The place of one state in its module, and the meta tensor that stands there while the state is away."""

    states: dict[str, torch.Tensor | None]
    attribute: str
    meta: torch.Tensor

    def bind(self, tensor: torch.Tensor) -> None:
        is_parameter = isinstance(self.meta, nn.Parameter)
        self.states[self.attribute] = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor

    def release(self) -> None:
        self.states[self.attribute] = self.meta


class WeightResidency:
    """Binds a module's states to views of device slabs, unit by unit.

    The rest becomes resident first, then blocks in `placement_order`, which leaves the streaming blocks evenly among
    the resident ones. A streaming block passes through a ring of memory while others compute. A run gives the same bits
    whatever is resident. Weights are immutable: dropping a unit frees its device copy and moves nothing.

    `ahead`: bytes that the link carries while one block computes.
    """

    def __init__(self, component: Loadable, layout: Layout, source: Source, device: Device, ahead: int = 0) -> None:
        self.layout = layout
        self._source, self._device = source, device
        self._slabs: dict[str, torch.Tensor] = {}
        self._arrivals: dict[str, Moment] = {}
        self._ring: Ring | None = None
        self._ring_bytes = ring_bytes(layout.blocks, ahead)
        order = placement_order([unit.nbytes for unit in layout.blocks])
        self.units = (layout.rest, *(layout.blocks[index] for index in order))
        self._blocks = list(layout.blocks)
        self._all = frozenset(unit.name for unit in layout.units)
        self._used = self._all
        self._turns: dict[str, int] = {}
        self._bound: str | None = None
        self._bindings = {unit.name: _bindings(component.module, unit) for unit in layout.units}
        self._kept = _bindings(component.module, layout.host)
        self._keep_on_host(component.module)
        for unit in layout.blocks:
            block = component.module.get_submodule(unit.name)
            block.register_forward_pre_hook(self._entering(unit))

    @property
    def nbytes(self) -> int:
        """Device bytes of the resident units."""
        return sum(self._device.cost(slab.nbytes) for slab in self._slabs.values())

    @property
    def reachable(self) -> int:
        """Device bytes when every unit is resident."""
        return sum(self._device.cost(unit.nbytes) for unit in self.layout.units)

    @property
    def slot(self) -> int:
        """Device bytes of the ring through which blocks stream."""
        return self._device.cost(self._ring_bytes)

    def place(self, limit: int) -> None:
        """Makes units resident as long as they fit in `limit` bytes. Returns at once: a run waits for a unit's bytes
        before it uses them. Raises OutOfMemory, and then makes no unit resident."""
        ring = self._open(limit, limit, self._all, streams=False)
        try:
            ring.begin(another=False)
        finally:
            self._close(ring)

    @contextmanager
    def running(self, limit: int, used: Collection[str] | None = None, keep: int = 0) -> Iterator[None]:
        """Lets the module run, in passes that `begin` announces. Units that fit in `limit` bytes become resident, the
        others stream. All arrive in the order in which the last run used them.

        A streaming block stays until another block is entered, so it may be called several times for one passage.

        `used`: paths of the submodules that the run enters, all by default. A block outside of them never streams. It
        comes after the others, to stay, if it fits in the `keep` bytes that stay resident after the run.

        Raises OutOfMemory, and what the source raises; then no new unit is resident."""
        self._used = self._all if used is None else frozenset(self._names(used))
        self._ring = ring = self._open(limit, keep, self._used, streams=True)
        try:
            ring.settle(self.layout.rest)
            yield
        finally:
            self._ring = None
            self._unbind()
            self._close(ring)
            self._learn()

    def begin(self, another: bool) -> None:
        """Begins a pass over the blocks, within `running`. `another`: whether one more is known to follow."""
        if self._ring is None:
            raise RuntimeError("a pass begins outside of a run")
        self._ring.begin(another)

    def _names(self, paths: Collection[str]) -> Iterator[str]:
        """The rest, and the units that lie within one of the submodules at `paths`."""
        yield self.layout.rest.name
        prefixes = tuple(f"{path}." for path in paths)
        yield from (unit.name for unit in self.layout.blocks if f"{unit.name}.".startswith(prefixes))

    def _close(self, ring: Ring) -> None:
        for name in ring.close():
            self._let_go(name)

    def _open(self, limit: int, keep: int, used: frozenset[str], *, streams: bool) -> Ring:
        homes: dict[str, torch.Tensor] = {}
        try:
            for unit in self._fitting(limit, keep, used):
                homes[unit.name] = self._slabs[unit.name] = self._device.allocate(unit.nbytes)
                self._bind(unit, homes[unit.name], [entry.offset for entry in unit.entries])
            due = (used - self._slabs.keys()) | homes.keys()
            coming = sorted(
                (unit for unit in (self.layout.rest, *self._blocks) if unit.name in due),
                key=lambda unit: unit.name not in used,
            )
            return Ring(coming, homes, streams, self._ring_bytes, self._source, self._device, self._arrivals)
        except BaseException:
            for name in homes:
                self._let_go(name)
            raise

    def drop(self, limit: int) -> None:
        """Drops units, the last of `units` first, until at most `limit` bytes are resident."""
        for unit in reversed(self.units):
            if self.nbytes <= limit:
                break
            if unit.name in self._slabs:
                self._let_go(unit.name)
        self._device.trim()

    def close(self) -> None:
        """Gives up device and host memory; the module cannot run after it."""
        self.drop(0)
        for binding in self._kept:
            binding.release()
        self._source.close()

    def _learn(self) -> None:
        """Sorts the blocks by their use in this run, which may differ from their order in the module."""
        if self._turns.keys() == self._used - {self.layout.rest.name}:
            self._blocks.sort(key=lambda unit: self._turns.get(unit.name, len(self._turns)))
        self._turns.clear()

    def _fitting(self, limit: int, keep: int, used: Collection[str]) -> Iterator[Unit]:
        """Units to make resident, while all that are fit: those that are used in `limit` bytes, others in `keep`."""
        nbytes = self.nbytes
        away = [unit for unit in self.units if unit.name not in self._slabs]
        for unit in sorted(away, key=lambda unit: unit.name not in used):
            nbytes += self._device.cost(unit.nbytes)
            if nbytes > (limit if unit.name in used else keep):
                return
            yield unit

    def _keep_on_host(self, module: nn.Module) -> None:
        """Binds host states to host memory. While a layer is called, its own are on the device: the copy is counted and
        freed after the call. Code that reads a state without calling its layer finds it on the host."""
        for binding, entry in zip(self._kept, self.layout.host.entries, strict=True):
            self._put_back(binding, entry)
            layer = module.get_submodule(entry.name.rpartition(".")[0])
            layer.register_forward_pre_hook(partial(self._bring, binding, entry))
            layer.register_forward_hook(partial(self._put_back, binding, entry), always_call=True)

    def _bring(self, binding: Binding, entry: Entry, *_: object) -> None:
        state = self._source.state(entry)  # asked for anew: a hook that held it would keep the host copy alive
        slab = self._device.bring(state.reshape(-1).view(torch.uint8))
        binding.bind(slab.view(state.dtype).view(state.shape))

    def _put_back(self, binding: Binding, entry: Entry, *_: object) -> None:
        binding.bind(self._source.state(entry))

    def _entering(self, unit: Unit) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if self._ring is None or unit.name not in self._used:
                raise RuntimeError(f"{unit.name} is used outside of a run that names it")
            if unit.name == self._bound:
                return
            self._leave(self._ring)
            self._turns.setdefault(unit.name, len(self._turns))
            if unit.name in self._slabs:
                self._ring.settle(unit)
            else:
                starts = self._ring.enter(unit)
                self._bind(unit, self._ring.memory, starts)
                self._bound = unit.name

        return hook

    def _leave(self, ring: Ring) -> None:
        """Leaves the streaming block that was used last."""
        if self._bound is not None:
            self._unbind()
            ring.leave()

    def _unbind(self) -> None:
        if self._bound is not None:
            self._release(self._bound)
            self._bound = None

    def _bind(self, unit: Unit, memory: torch.Tensor, starts: Sequence[int]) -> None:
        for binding, entry, start in zip(self._bindings[unit.name], unit.entries, starts, strict=True):
            binding.bind(view(memory, entry, start))

    def _release(self, name: str) -> None:
        for binding in self._bindings[name]:
            binding.release()

    def _let_go(self, name: str) -> None:
        """Drops a unit, and every reference to its slab: memory that is still referenced when the device is trimmed
        does not return to the driver."""
        if (arrived := self._arrivals.pop(name, None)) is not None:
            self._device.wait(arrived)
        self._release(name)
        self._device.free(self._slabs.pop(name))


def _bindings(module: nn.Module, unit: Unit) -> list[Binding]:
    return [_binding(module, entry.name) for entry in unit.entries]


def _binding(module: nn.Module, name: str) -> Binding:
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)
    states = owner._parameters if attribute in owner._parameters else owner._buffers
    meta = states[attribute]
    if meta is None:
        raise KeyError(name)
    return Binding(states, attribute, meta)  # type: ignore[arg-type]
