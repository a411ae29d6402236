"""Which layers of a component keep their weights packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lightx2v.layers.packed import PackedLinear
from lightx2v.models.component import Component
from lightx2v.weights.tensor_ref import TensorRef


def keep_packed(component: Component, index: Mapping[str, TensorRef]) -> None:
    """Replaces the linear layers in the blocks of `component` whose weights are packed in `index`. Other packed tensors
    are unpacked when they are read, those of layers in fp8 too."""
    layers: dict[str, PackedLinear] = {}
    for path, layer in component.block_layers():
        ref = index.get(component.weights.source(f"{path}.weight"))
        alike = ref is not None and ref.shape == tuple(layer.weight.shape) and ref.has_whole_rows
        if ref and alike and ref.packing and path not in component.weights.fp8_layers:
            layers[path] = PackedLinear(layer, ref.packing)
    for path, packed in layers.items():
        component.module.set_submodule(path, packed)
    unpacked_bytes = max((layer.unpacked_bytes(component.dtype) for layer in layers.values()), default=0)
    component.weights = replace(component.weights, packed_layers=frozenset(layers), unpacked_bytes=unpacked_bytes)
