"""Which layers of a component are kept in fp8, and what room they take to run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import nn

from lightx2v.core import GenerateRequest
from lightx2v.layers.linear import MULTIPLE, Fp8Linear
from lightx2v.models.component import Component

C = TypeVar("C", bound=Component)

FASTER = 1.4
"""Than in bf16, of a transformer whose layers are in fp8: 0.504 and 0.361 s for four steps of klein-9B (H200)."""
WORKSPACE = 1.1
"""Of what a run needs otherwise: what enters a layer is there scaled and in fp8 as well, for a while."""


def keep_in_fp8(component: C) -> C:
    """`component`, whose blocks' linear layers are replaced: what lies outside of blocks, stays on the host or has to
    be precise remains, and what no product takes."""
    layers = dict(_eligible(component))
    for path, layer in layers.items():
        component.module.set_submodule(path, Fp8Linear(layer))
    component.fp8_layers = frozenset(layers)
    return component


def workspace(component: Component, request: GenerateRequest) -> int:
    """Device bytes that a run needs beside weights, whatever its layers are kept in."""
    nbytes = component.workspace(request)
    return int(WORKSPACE * nbytes) if component.fp8_layers else nbytes


def flops(component: Component, request: GenerateRequest) -> float:
    """Operations of one use of all units, as many of bf16's as take the same time."""
    count = component.flops(request)
    return count / FASTER if component.fp8_layers else count


def _eligible(component: Component) -> Iterator[tuple[str, nn.Linear]]:
    exact = component.host_tensors | component.precise
    for block in component.blocks:
        for name, layer in component.module.get_submodule(block).named_modules(prefix=block):
            if isinstance(layer, nn.Linear) and _fits(layer) and f"{name}.weight" not in exact:
                yield name, layer


def _fits(layer: nn.Linear) -> bool:
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0
