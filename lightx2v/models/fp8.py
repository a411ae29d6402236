"""Which layers of a component are kept in fp8."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from torch import nn

from lightx2v.layers.linear import MULTIPLE, Fp8Linear
from lightx2v.models.component import Component

C = TypeVar("C", bound=Component)


def keep_in_fp8(component: C) -> C:
    """Replaces the linear layers in the blocks of `component`, and returns it. A layer remains as it is if it stays on
    the host, has to be precise, or has a width that the products do not take."""
    layers = {path: Fp8Linear(layer) for path, layer in component.block_layers() if _fits(layer)}
    for path, layer in layers.items():
        component.module.set_submodule(path, layer)
    component.weights = replace(component.weights, fp8_layers=frozenset(layers))
    return component


def _fits(layer: nn.Linear) -> bool:
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0
