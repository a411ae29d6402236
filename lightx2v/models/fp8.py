"""Which layers of a component are kept in fp8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from torch import nn

from lightx2v.layers.linear import MULTIPLE, Fp8Linear
from lightx2v.models.component import Component

C = TypeVar("C", bound=Component)


def keep_in_fp8(component: C) -> C:
    """Replaces the linear layers in the blocks of `component`, and returns it. A layer remains as it is if it stays on
    the host, has to be precise, or has a width that the products do not take."""
    layers = dict(_eligible(component))
    for path, layer in layers.items():
        component.module.set_submodule(path, Fp8Linear(layer))
    component.weights = replace(component.weights, fp8_layers=frozenset(layers))
    return component


def _eligible(component: Component) -> Iterator[tuple[str, nn.Linear]]:
    exact = component.weights.host_tensors | component.weights.precise
    for block in component.blocks:
        for name, layer in component.module.get_submodule(block).named_modules(prefix=block):
            if isinstance(layer, nn.Linear) and _fits(layer) and f"{name}.weight" not in exact:
                yield name, layer


def _fits(layer: nn.Linear) -> bool:
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0
