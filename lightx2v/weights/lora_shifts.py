"""Differences of states that belong to no linear layer: of norms, of modulation tables, of convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def shifted(module: nn.Module, name: str, by: torch.Tensor, scale: float) -> Iterator[None]:
    """Adds `scale` times `by` to the state `name` of `module` within the context. The state itself stays as it is:
    another tensor takes its place."""
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)
    state = owner.get_parameter(attribute)
    owner._parameters[attribute] = nn.Parameter(torch.add(state, by, alpha=scale), requires_grad=False)
    try:
        yield
    finally:
        owner._parameters[attribute] = state
