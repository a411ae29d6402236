"""Differences of states that belong to no linear layer: of norms, of modulation tables, of convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def shifted(module: nn.Module, name: str, by: torch.Tensor, scale: float) -> Iterator[None]:
    """Adds `scale` times `by` to the state `name` of `module` while the submodule that has it is called.

    The state itself stays as it is: another tensor takes its place for the call.
    """
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)
    states: list[nn.Parameter] = []

    def enter(*_: object) -> None:
        state = owner.get_parameter(attribute)
        states.append(state)
        owner._parameters[attribute] = nn.Parameter(torch.add(state, by, alpha=scale), requires_grad=False)

    def leave(*_: object) -> None:
        if states:
            owner._parameters[attribute] = states.pop()

    hooks = (
        owner.register_forward_pre_hook(enter),
        owner.register_forward_hook(leave, always_call=True, prepend=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
