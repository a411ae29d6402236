"""LoRA files: which low-rank products they add to which linear layers. Reads headers, and the scalars in them.

A key is `<prefix><layer><part>`. Layers are called as in the checkpoint, or as the component's table of names says; in
Kohya's files with underscores for dots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.index import read_header
from lightx2v.weights.layout import Entry, Loadable, Unit, make_unit
from lightx2v.weights.lora_scale import lora_scale, read_configuration
from lightx2v.weights.names import Rows, Table, expand, row
from lightx2v.weights.tensor_ref import TensorRef

PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.", "lora_unet_", "")
DOWN, UP, ALPHA = "down", "up", "alpha"
PARTS: Mapping[str, str] = {
    ".lora_A.weight": DOWN,
    ".lora_down.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_up.weight": UP,
    ".alpha": ALPHA,
}


class Adaptable(Loadable, Protocol):
    """A component whose linear layers other makers know by other names."""

    @property
    def names(self) -> Table: ...


@dataclass(frozen=True, slots=True)
class Branch:
    """Beside the linear layer at `path`: `scale` times rows `first` to `last` of `up`, times `down`, from the layer's
    row `start` on."""

    path: str
    down: Entry
    up: Entry
    first: int
    last: int
    start: int
    scale: float


@dataclass(frozen=True, slots=True)
class Lora:
    """All tensors of a file, and what becomes of them."""

    unit: Unit
    branches: tuple[Branch, ...]

    @property
    def rank(self) -> int:
        """The largest."""
        return max(branch.down.shape[0] for branch in self.branches)


def read_lora(file: Path, component: Adaptable) -> Lora:
    """What `file` adds to `component`. Raises InvalidCheckpoint, naming the file and the first key that is wrong."""
    refs = read_header(file)
    layers = _sorted_by_layer(file, refs, _layers(component))
    if not layers:
        raise InvalidCheckpoint(f"{file}: there is nothing in it")
    _require_device(file, layers, component)
    unit = make_unit(f"lora {file}", 0, _states(refs, layers, component))
    entries = {entry.name: entry for entry in unit.entries}
    configuration = read_configuration(file)
    branches: list[Branch] = []
    for paths, keys in layers.items():
        down, up = (entries[_pair(file, keys, part)] for part in (DOWN, UP))
        _check(component.module, file, paths, down, up)
        scale = lora_scale(file, configuration, keys.get(ALPHA), paths[0].path, down.shape[0])
        branches += _branches(component.module, paths, down, up, scale)
    return Lora(unit, tuple(branches))


def _require_device(file: Path, layers: Mapping[tuple[Rows, ...], Mapping[str, str]], component: Adaptable) -> None:
    for paths, keys in layers.items():
        if f"{paths[0].path}.weight" in component.weights.host_tensors:
            key = next(iter(keys.values()))
            raise InvalidCheckpoint(
                f"{file}: {key} belongs to a layer that stays on the host; nothing is added to those"
            )


def _states(
    refs: Mapping[str, TensorRef], layers: Mapping[tuple[Rows, ...], Mapping[str, str]], component: Adaptable
) -> Iterator[Entry]:
    """In the type of what enters the layer."""
    for paths, keys in layers.items():
        dtype = torch.float32 if f"{paths[0].path}.weight" in component.weights.precise else component.dtype
        yield from (Entry(key, refs[key], dtype) for part, key in keys.items() if part != ALPHA)


def _layers(component: Adaptable) -> dict[str, tuple[Rows, ...]]:
    """The linear layers behind every name that a file may have for them."""
    linear = [path for path, module in component.module.named_modules() if isinstance(module, nn.Linear)]
    own = {component.weights.source(f"{path}.weight").removesuffix(".weight"): row(path) for path in linear}
    dotted = expand(component.names, linear) | own
    return {name.replace(".", "_"): layers for name, layers in dotted.items()} | dotted


def _sorted_by_layer(
    file: Path, refs: Mapping[str, TensorRef], layers: Mapping[str, tuple[Rows, ...]]
) -> dict[tuple[Rows, ...], dict[str, str]]:
    """For every layer, or layers with one name in common, the keys of its parts."""
    found: dict[tuple[Rows, ...], dict[str, str]] = {}
    for key in refs:
        stem, part = next(((key.removesuffix(end), part) for end, part in PARTS.items() if key.endswith(end)), ("", ""))
        names = (stem.removeprefix(prefix) for prefix in PREFIXES if stem.startswith(prefix))
        paths = next((layers[name] for name in names if name in layers), None)
        if not part:
            raise InvalidCheckpoint(f"{file}: {key} is no part of a LoRA as it is understood here ({', '.join(PARTS)})")
        if paths is None:
            raise InvalidCheckpoint(f"{file}: {key} belongs to no linear layer of this model; is it for another one?")
        if part in found.setdefault(paths, {}):
            raise InvalidCheckpoint(f"{file}: {key} is there a second time, as {found[paths][part]}")
        found[paths][part] = key
    return found


def _pair(file: Path, keys: Mapping[str, str], part: str) -> str:
    if part not in keys:
        raise InvalidCheckpoint(f"{file}: {next(iter(keys.values()))} has no {part} part beside it")
    return keys[part]


def _check(module: nn.Module, file: Path, layers: tuple[Rows, ...], down: Entry, up: Entry) -> None:
    entering, leaving = _widths(module, layers)
    rank = down.shape[0] if down.shape else 0
    for entry, wanted in ((down, (max(1, rank), entering)), (up, (leaving, rank))):
        if entry.shape != wanted:
            raise InvalidCheckpoint(
                f"{file}: {entry.name} has shape {list(entry.shape)}, the model has room for {list(wanted)}"
            )
        if not entry.dtype.is_floating_point:
            raise InvalidCheckpoint(f"{file}: {entry.name} holds {entry.dtype}, which is no weight")


def _branches(module: nn.Module, layers: tuple[Rows, ...], down: Entry, up: Entry, scale: float) -> Iterator[Branch]:
    first = 0
    for layer in layers:
        height = _widths(module, (layer,))[1]
        yield Branch(layer.path, down, up, first, first + height, layer.part * height, scale)
        first += height


def _widths(module: nn.Module, layers: tuple[Rows, ...]) -> tuple[int, int]:
    """What enters each of the layers, and what leaves all of them."""
    shapes = [module.get_parameter(f"{layer.path}.weight").shape for layer in layers]
    return shapes[0][1], sum(shape[0] // layer.parts for shape, layer in zip(shapes, layers, strict=True))
