"""LoRAs of a component's linear layers, one at a time and for one run.

No LoRA is merged into weights: these are shared by the node's processes, and a run without a LoRA must find them
unchanged. The low-rank product is added to a layer's output in place, so it takes no memory of the output's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from lightx2v.limits import check_lora
from lightx2v.types import GenerateRequest
from lightx2v.weights.device import Device
from lightx2v.weights.host_copy import Source
from lightx2v.weights.layout import HOST, Layout, Unit, view
from lightx2v.weights.lora import Adaptable, Lora, read_lora

ROWS = 4096
"""Tokens that are multiplied at a time: enough to fill a GPU, few enough to keep the products small."""

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA and its bytes on the host."""

    lora: Lora
    source: Source


class Adapters:
    """The LoRAs of `component`, read from `files` by name. Raises InvalidCheckpoint if one does not fit it.

    `lazy`: whether a LoRA is read from disk for every run instead of kept on the host.
    """

    def __init__(self, component: Adaptable, files: Mapping[str, Path], device: Device, lazy: bool) -> None:
        self._module, self._device, self._itemsize = component.module, device, component.dtype.itemsize
        loras = {name: read_lora(file, component) for name, file in files.items()}
        self._known = {name: Adapter(lora, self._source(lora.unit, lazy)) for name, lora in loras.items()}

    def workspace(self, request: GenerateRequest) -> int:
        """Device bytes that the request's LoRA takes during a run. Raises InvalidRequest if its name is unknown."""
        if request.lora is None:
            return 0
        lora = self._find(request.lora).lora
        return self._device.cost(lora.unit.nbytes) + ROWS * lora.rank * self._itemsize

    @contextmanager
    def activate(self, request: GenerateRequest) -> Iterator[None]:
        """Lets the module compute with the request's LoRA. Raises InvalidRequest if its name is unknown.

        The module runs uncompiled meanwhile: compiled code ignores hooks that are registered later."""
        if request.lora is None:
            yield
            return
        adapter = self._find(request.lora)
        states = self._arrived(adapter)
        with torch.compiler.set_stance("force_eager"), ExitStack() as hooks:
            for branch in adapter.lora.branches:
                up = states[branch.up.name][branch.first : branch.last]
                hook = _adding(states[branch.down.name], up, branch.start, branch.scale * request.lora_scale)
                layer = self._module.get_submodule(branch.path)
                hooks.callback(layer.register_forward_hook(hook).remove)
            yield

    def close(self) -> None:
        """Gives up host memory."""
        for adapter in self._known.values():
            adapter.source.close()

    def _find(self, name: str) -> Adapter:
        check_lora(name, self._known)
        return self._known[name]

    def _source(self, unit: Unit, lazy: bool) -> Source:
        layout = Layout(unit, (), Unit(HOST, unit.nbytes, 0, ()))
        return self._device.host_source(layout, lazy)

    def _arrived(self, adapter: Adapter) -> dict[str, torch.Tensor]:
        """The LoRA's tensors by name, on the device, in the workspace of the run."""
        unit = adapter.lora.unit
        slab = self._device.bring(adapter.source.unit(unit))
        return {entry.name: view(slab, entry) for entry in unit.entries}


def _adding(down: torch.Tensor, up: torch.Tensor, start: int, scale: float) -> Hook:
    """A hook that adds scale * up (down x) to a linear layer's output from column `start` on. It adds in place: nothing
    else refers to the output."""
    stop = start + up.shape[0]

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        entering, leaving = inputs[0].reshape(-1, down.shape[1]), output.view(-1, output.shape[-1])[:, start:stop]
        for states, sums in zip(entering.split(ROWS), leaving.split(ROWS), strict=True):
            sums.addmm_(F.linear(states, down), up.t(), alpha=scale)

    return hook
