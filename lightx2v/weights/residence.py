"""Which units of a component are on the device, and the others' passage through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lightx2v.weights.device import Device
from lightx2v.weights.host import Source, view
from lightx2v.weights.layout import Layout, Loadable, Unit


@dataclass(frozen=True, slots=True)
class Binding:
    """The place of one state in the module, and the meta tensor that stands there while it is away."""

    states: dict[str, torch.Tensor | None]
    attribute: str
    meta: torch.Tensor

    def bind(self, tensor: torch.Tensor) -> None:
        is_parameter = isinstance(self.meta, nn.Parameter)
        self.states[self.attribute] = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor

    def release(self) -> None:
        self.states[self.attribute] = self.meta


class Residence:
    """Binds a module's states to views of device slabs, unit by unit.

    What is resident is always the rest and a prefix of the blocks. A block that is not resident when it is entered
    is copied in for the call and dropped after it, so a run gives the same bits whatever is resident. Weights are
    immutable: dropping frees the device copy and moves nothing.
    """

    def __init__(self, component: Loadable, layout: Layout, source: Source, device: Device) -> None:
        self.layout = layout
        self._source, self._device = source, device
        self._slabs: dict[str, torch.Tensor] = {}
        self._bindings = {unit.name: _bindings(component.module, unit) for unit in layout.units}
        for binding, entry in zip(_bindings(component.module, layout.host), layout.host.entries, strict=True):
            binding.bind(source.state(entry))
        for unit in layout.blocks:
            block = component.module.get_submodule(unit.name)
            block.register_forward_pre_hook(self._entering(unit))
            block.register_forward_hook(self._leaving(unit), always_call=True)
        self._passing: set[str] = set()

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
        """Device bytes that one streamed block needs while it is used."""
        return max((self._device.cost(unit.nbytes) for unit in self.layout.blocks), default=0)

    def place(self, limit: int) -> None:
        """Places units in order of use as long as they fit in `limit` bytes. Raises OutOfMemory, placing no more."""
        for unit in self.layout.units:
            if unit.name in self._slabs:
                continue
            if self.nbytes + self._device.cost(unit.nbytes) > limit:
                return
            self._slabs[unit.name] = self._copy_in(unit)

    def drop(self, limit: int) -> None:
        """Drops units, the last used first, until at most `limit` bytes are resident."""
        for unit in reversed(self.layout.units):
            if self.nbytes <= limit:
                break
            if unit.name in self._slabs:
                self._let_go(unit)
        self._device.trim()

    def _entering(self, unit: Unit) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if unit.name not in self._slabs:
                self._slabs[unit.name] = self._copy_in(unit)
                self._passing.add(unit.name)

        return hook

    def _leaving(self, unit: Unit) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if unit.name in self._passing:
                self._passing.remove(unit.name)
                self._let_go(unit)

        return hook

    def _copy_in(self, unit: Unit) -> torch.Tensor:
        host = self._source.unit(unit)
        slab = self._device.allocate(unit.nbytes)
        self._device.copy(host, slab)
        for binding, entry in zip(self._bindings[unit.name], unit.entries, strict=True):
            binding.bind(view(slab, entry))
        return slab

    def _let_go(self, unit: Unit) -> None:
        """Keeps no reference to the slab: what is held when the device is trimmed does not return to the driver."""
        for binding in self._bindings[unit.name]:
            binding.release()
        self._device.free(self._slabs.pop(unit.name))


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
