"""The LoRAs of a component, added for one run.

No LoRA is merged into weights: these are shared by the node's processes, and a run without a LoRA must find them
unchanged. Products are added to a layer's output in place, so they take no memory of the output's size.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from lightx2v.errors import InvalidCheckpoint, InvalidRequest
from lightx2v.limits import check_lora
from lightx2v.types import GenerateRequest, LoraFile
from lightx2v.weights.active_loras import ActiveLoras, Adapter, Chosen
from lightx2v.weights.device import Device
from lightx2v.weights.host_copy import Source
from lightx2v.weights.layout import HOST, Layout, Unit
from lightx2v.weights.lora import Lora, read_lora
from lightx2v.weights.lora_keys import Adaptable

log = logging.getLogger(__name__)


class Adapters:
    """The LoRAs of `component`, read from `files` by name. One that cannot be used is refused, with its reason, to
    those who ask for it.

    `lazy`: whether a LoRA is read from disk for every run instead of kept on the host.
    """

    def __init__(self, component: Adaptable, files: Mapping[str, LoraFile], device: Device, lazy: bool) -> None:
        self._module, self._device, self._itemsize = component.module, device, component.dtype.itemsize
        self._known: dict[str, Adapter | None] = {}
        self._refused: dict[str, str] = {}
        for name, file in files.items():
            try:
                lora = read_usable(file, component)
                self._known[name] = Adapter(lora, file.scale, self._source(lora.unit, lazy)) if lora else None
            except InvalidCheckpoint as error:
                log.error("the LoRA %s cannot be used: %s", name, error)
                self._refused[name] = str(error)
        self.on_host = frozenset(_of_layers(self._known, component.weights.host_tensors))
        """The names of the LoRAs that change layers which stay on the host."""

    def workspace(self, request: GenerateRequest) -> int:
        """Device bytes that the request's LoRAs take during a run. Raises InvalidRequest if one is unknown, or cannot
        be used."""
        return sum(
            self._device.cost(adapter.lora.unit.nbytes) + adapter.lora.scratch(self._itemsize)
            for adapter, _ in self._chosen(request)
        )

    @contextmanager
    def chosen(self, request: GenerateRequest, units: Collection[str]) -> Iterator[ActiveLoras]:
        """The request's LoRAs, on the device until the end of the context. `units`: paths of the submodules whose
        weights come and go. Raises InvalidRequest if one is unknown, or cannot be used."""
        loras = ActiveLoras(self._module, units, list(self._chosen(request)), self._device)
        try:
            yield loras
        finally:
            loras.close()

    def close(self) -> None:
        """Gives up host memory."""
        for adapter in self._known.values():
            if adapter is not None:
                adapter.source.close()

    def _chosen(self, request: GenerateRequest) -> Iterator[Chosen]:
        """The LoRAs of a request that add anything to this transformer, each with its scale."""
        for name, scale in request.loras:
            if name in self._refused:
                raise InvalidRequest(f"lora: {name!r} cannot be used: {self._refused[name]}", "lora")
            check_lora(name, self._known)
            adapter = self._known[name]
            if adapter is not None and scale * adapter.scale:
                yield adapter, scale * adapter.scale

    def _source(self, unit: Unit, lazy: bool) -> Source:
        layout = Layout(unit, (), Unit(HOST, unit.nbytes, 0, ()))
        return self._device.host_source(layout, lazy)


def read_usable(file: LoraFile, component: Adaptable) -> Lora | None:
    """What a LoRA adds to `component`, if anything. Raises InvalidCheckpoint if it cannot be used."""
    if file.refusal:
        raise InvalidCheckpoint(file.refusal)
    return None if file.path is None else read_lora(file.path, component)


def _of_layers(known: Mapping[str, Adapter | None], states: Collection[str]) -> Iterator[str]:
    """The names of those that change a layer with one of these weights."""
    for name, adapter in known.items():
        if adapter and any(f"{branch.path}.weight" in states for branch in adapter.lora.branches):
            yield name
