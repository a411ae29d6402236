"""LoRAs beside a component's linear layers, one at a time and for the time of one run.

Nothing is merged: the weights stay the node's, whatever is resident or streams, and a run without a LoRA finds the
module as if there were none. A layer's output has the product added in place, so that it takes no room of its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from lightx2v.core import GenerateRequest
from lightx2v.limits import check_lora
from lightx2v.weights.device import Device
from lightx2v.weights.host import HostCopy, OnDisk, Source
from lightx2v.weights.layout import HOST, Layout, Unit, view
from lightx2v.weights.lora import Adaptable, Lora, read_lora

ROWS = 4096
"""Tokens that are multiplied at a time: enough to fill a GPU, and few enough for their products to be small."""

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA and its bytes on the host."""

    lora: Lora
    source: Source


class Adapters:
    """Reads `files`, by name, for `component`. Raises InvalidCheckpoint if one does not fit it."""

    def __init__(self, component: Adaptable, files: Mapping[str, Path], device: Device, lazy: bool) -> None:
        self._module, self._device, self._itemsize = component.module, device, component.dtype.itemsize
        loras = {name: read_lora(file, component) for name, file in files.items()}
        self._known = {name: Adapter(lora, self._source(lora.unit, lazy)) for name, lora in loras.items()}

    def workspace(self, request: GenerateRequest) -> int:
        """Device bytes of the request's LoRA while it runs. Raises InvalidRequest if there is none of its name."""
        if request.lora is None:
            return 0
        lora = self._find(request.lora).lora
        return self._device.cost(lora.unit.nbytes) + ROWS * lora.rank * self._itemsize

    @contextmanager
    def activate(self, request: GenerateRequest) -> Iterator[None]:
        """Within, the module computes with the request's LoRA. Raises InvalidRequest if there is none of its name.

        Not in compiled code, which does not see hooks that come later."""
        if request.lora is None:
            yield
            return
        adapter = self._find(request.lora)
        states = self._arrived(adapter)
        with torch.compiler.set_stance("force_eager"), ExitStack() as hooks:
            for branch in adapter.lora.branches:
                up = states[branch.up.name][branch.first : branch.last]
                hook = _adding(states[branch.down.name], up, branch.scale * request.lora_scale)
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
        return OnDisk(layout) if lazy else HostCopy(layout, self._device.pinned)

    def _arrived(self, adapter: Adapter) -> dict[str, torch.Tensor]:
        """The LoRA's tensors on the device, in one stretch of the run's workspace, by name."""
        unit = adapter.lora.unit
        slab = self._device.bring(adapter.source.unit(unit))
        return {entry.name: view(slab, entry) for entry in unit.entries}


def _adding(down: torch.Tensor, up: torch.Tensor, scale: float) -> Hook:
    """Adds scale * up (down x) to a linear layer's output, which is its own."""

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        entering, leaving = inputs[0].reshape(-1, down.shape[1]), output.view(-1, up.shape[0])
        for states, sums in zip(entering.split(ROWS), leaving.split(ROWS), strict=True):
            sums.addmm_(F.linear(states, down), up.t(), alpha=scale)

    return hook
