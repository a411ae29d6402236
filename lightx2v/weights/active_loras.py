"""The LoRAs of one request on the device, and the moments at which they count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from lightx2v.weights.device import Device
from lightx2v.weights.host_copy import Source
from lightx2v.weights.layout import view
from lightx2v.weights.lora import Branch, Lora, Shift
from lightx2v.weights.lora_shifts import shifted


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA and its bytes on the host."""

    lora: Lora
    scale: float
    """The factor of what it adds, beside the request's."""
    source: Source


Chosen = tuple[Adapter, float]
"""A LoRA of a request, and its scale."""

States = Mapping[str, torch.Tensor]

Part = Callable[[ExitStack], object]
"""Adds a part of a LoRA until the stack is closed."""


class ActiveLoras:
    """The chosen LoRAs of one request, in the workspace of its run. They count only within `active`, so that other
    requests can use the module in between.

    `units`: the paths of the submodules whose weights come and go. Hooks are in a unit only while it is called: its
    compiled code, which other requests use, must not be traced with them.
    """

    def __init__(self, module: nn.Module, units: Collection[str], chosen: Sequence[Chosen], device: Device) -> None:
        self._module, self._units, self._chosen, self._device = module, frozenset(units), chosen, device
        self._is_on = False
        self._open = ExitStack()
        self._throughout: list[Part] = []
        self.bring()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Lets the module compute with the LoRAs, uncompiled: compiled code ignores hooks that are registered later."""
        if not self._chosen:
            yield
            return
        self._is_on = True
        try:
            with torch.compiler.set_stance("force_eager"), ExitStack() as during:
                for add in self._throughout:
                    add(during)
                yield
        finally:
            self._is_on = False

    def bring(self) -> None:
        """Brings the LoRAs to the device, into the workspace of the run. States of the module itself change for as
        long as they are active: its call returns before it computes, because it pauses."""
        parts = dict(self._parts())
        self._throughout = parts.pop("", [])
        for path, own in parts.items():
            self._watch(self._module.get_submodule(path), own)

    def close(self) -> None:
        """Gives up the memory. The module computes without the LoRAs until they are brought again."""
        self._open.close()
        self._throughout = []

    def _parts(self) -> Mapping[str, list[Part]]:
        """What has to be added while a submodule is called, by its path: a unit, or a layer outside of all units."""
        parts: dict[str, list[Part]] = defaultdict(list)
        for adapter, scale in self._chosen:
            states = self._arrived(adapter)
            for branch in adapter.lora.branches:
                parts[self._unit(branch.path)].append(self._beside(branch, states, scale))
            for shift in adapter.lora.shifts:
                parts[self._unit(shift.state.rpartition(".")[0])].append(self._instead(shift, states, scale))
        return parts

    def _beside(self, branch: Branch, states: States, scale: float) -> Part:
        """Adds a product to a layer's output, before the hooks of the residency take the weights of a host layer
        away."""
        hook = branch.product.hook(states, branch.strip, branch.scale * scale)
        layer = self._module.get_submodule(branch.path)
        return lambda during: during.callback(layer.register_forward_hook(hook, prepend=True).remove)

    def _instead(self, shift: Shift, states: States, scale: float) -> Part:
        by = states[shift.by.name]
        return lambda during: during.enter_context(shifted(self._module, shift.state, by, scale))

    def _unit(self, path: str) -> str:
        """The unit that holds the submodule at `path`, or `path` itself."""
        names = path.split(".")
        prefixes = (".".join(names[:length]) for length in range(1, len(names) + 1))
        return next((prefix for prefix in prefixes if prefix in self._units), path)

    def _watch(self, module: nn.Module, parts: Sequence[Part]) -> None:
        """Adds `parts` during every call of `module` that happens within `active`."""
        during = ExitStack()

        def enter(*_: object) -> None:
            if self._is_on:
                for add in parts:
                    add(during)

        leave = partial(_close, during)
        self._open.callback(module.register_forward_pre_hook(enter).remove)
        self._open.callback(module.register_forward_hook(leave, always_call=True, prepend=True).remove)

    def _arrived(self, adapter: Adapter) -> dict[str, torch.Tensor]:
        """The LoRA's tensors by name, on the device."""
        unit = adapter.lora.unit
        slab = self._device.bring(adapter.source.unit(unit))
        return {entry.name: view(slab, entry) for entry in unit.entries}


def _close(stack: ExitStack, *_: object) -> None:
    stack.close()
