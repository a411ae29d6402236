"""LoRA files: what they add to which layers. Reads headers, and the scalars in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.index import read_header
from lightx2v.weights.layout import Entry, Unit, make_unit
from lightx2v.weights.lora_keys import Adaptable, Layers, Part, sort_keys, warn_of
from lightx2v.weights.lora_parts import Parts, make_products
from lightx2v.weights.lora_products import (
    Decomposed,
    LowRank,
    Offset,
    Product,
    Strip,
    Whole,
    require,
    scratch_bytes,
)
from lightx2v.weights.lora_scale import lora_scale, read_alpha, read_configuration
from lightx2v.weights.tensor_ref import TensorRef

Keys = Mapping[Part, str]

STATES: Mapping[Part, str] = {"diff": "weight", "diff_b": "bias", "diff_m": ""}
"""The state of a layer to which a difference is added."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Beside the linear layer at `path`: `scale` times a strip of `product`."""

    path: str
    product: Product
    strip: Strip
    scale: float


@dataclass(frozen=True, slots=True)
class Shift:
    """A difference of a state that belongs to no linear layer, such as a norm's weight."""

    state: str
    by: Entry


@dataclass(frozen=True, slots=True)
class Lora:
    """All tensors of a file, and what becomes of them."""

    unit: Unit
    branches: tuple[Branch, ...]
    shifts: tuple[Shift, ...] = ()

    def scratch(self, itemsize: int) -> int:
        """Device bytes that a run needs beside `unit`, where activations have `itemsize` bytes."""
        shifted = sum(shift.by.nbytes for shift in self.shifts)
        return scratch_bytes([branch.product for branch in self.branches], itemsize) + shifted


def read_lora(file: Path, component: Adaptable) -> Lora:
    """What `file` adds to `component`. Raises InvalidCheckpoint, naming the file and the first key that is wrong."""
    refs = read_header(file)
    found = sort_keys(file, refs, component)
    if not found:
        raise InvalidCheckpoint(f"{file}: there is nothing in it for the transformer")
    reader = _Reader(file, refs, component)
    branches, shifts, taken = list[Branch](), list[Shift](), set[str]()
    for layers in sorted(found, key=len):
        paths = {layer.path for layer in layers}
        if again := paths & taken:
            warn_of(file, list(found[layers].values()), f"say again what other keys say of {min(again)}, and give way")
        branches += [branch for branch in reader.branches(layers, found[layers]) if branch.path not in taken]
        shifts += reader.shifts(layers, found[layers])
        taken |= paths
    used = [entry for branch in branches for entry in branch.product.entries] + [shift.by for shift in shifts]
    return Lora(make_unit(f"lora {file}", 0, dict.fromkeys(used)), tuple(branches), tuple(shifts))


class _Reader:
    """Makes products of the keys of one file."""

    def __init__(self, file: Path, refs: Mapping[str, TensorRef], component: Adaptable) -> None:
        self._file, self._refs, self._component = file, refs, component
        self._configuration = read_configuration(file)
        self._states = component.module.state_dict()
        modules = component.module.named_modules()
        self._linear = {path: layer for path, layer in modules if isinstance(layer, nn.Linear)}

    def branches(self, layers: Layers, keys: Keys) -> Iterator[Branch]:
        """What the parts in `keys` add to linear layers that have one name in common."""
        linear = [layer for rows in layers if (layer := self._linear.get(rows.path)) is not None]
        if not linear:
            return
        heights = [layer.out_features // rows.parts for layer, rows in zip(linear, layers, strict=True)]
        for product in self._products(layers, keys):
            product.check(sum(heights), linear[0].in_features)
            scale, first = self._scale(product, layers[0].path, keys.get("alpha")), 0
            for rows, height in zip(layers, heights, strict=True):
                strip = Strip(first, first + height, rows.part * height)
                yield Branch(rows.path, product, strip, scale)
                first += height

    def shifts(self, layers: Layers, keys: Keys) -> Iterator[Shift]:
        """What the parts in `keys` add to states that belong to no linear layer."""
        path, states = layers[0].path, self._states
        if path in self._linear:
            return
        for part, key in keys.items():
            names = {path, f"{path}.{STATES[part]}"} & states.keys() if part in STATES else set()
            if len(layers) > 1 or not names:
                raise InvalidCheckpoint(f"{self._file}: {key} belongs to no linear layer of this model")
            (state,) = names
            entry = self._entry(key, state)
            require(entry, *states[state].shape)
            yield Shift(state, entry)

    def _products(self, layers: Layers, keys: Keys) -> Iterator[Product]:
        path = layers[0].path
        state = f"{path}.weight"
        parts: Parts = {part: self._entry(key, state) for part, key in keys.items() if part != "alpha"}
        if not parts:
            raise InvalidCheckpoint(f"{self._file}: {keys['alpha']} has no down part beside it")
        for product in make_products(self._file, parts):
            self._check_norms(product, path)
            yield product

    def _scale(self, product: Product, path: str, alpha: str | None) -> float:
        if isinstance(product, Whole | Offset) or (product.rank is None and alpha):
            return 1.0
        stated = read_alpha(alpha, self._refs[alpha]) if alpha else None
        return lora_scale(self._configuration, stated, path, product.rank)

    def _check_norms(self, product: Product, path: str) -> None:
        weight = self._component.module.get_parameter(f"{path}.weight")
        if isinstance(product, Decomposed) and not weight.dtype.is_floating_point:
            raise InvalidCheckpoint(
                f"{product.magnitude.ref.file}: {product.magnitude.name} needs the norms of weights that are kept "
                "quantised here; DoRA works with layers in full precision only"
            )
        if self._configuration.use_dora and isinstance(product, LowRank) and not isinstance(product, Decomposed):
            raise InvalidCheckpoint(f"{self._file}: use_dora: {product.down.name} has no magnitudes beside it")

    def _entry(self, key: str, state: str) -> Entry:
        """In the type of what enters the layer, or of the state."""
        is_precise = state in self._component.weights.precise
        return Entry(key, self._refs[key], torch.float32 if is_precise else self._component.dtype)
