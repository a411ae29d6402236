"""Parts of a module as compiled code. What is compiled and what is not differ in the last bit, so which of the two a
request gets depends on its shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.fx.experimental._config as shapes
from torch import nn

OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"deterministic": True}
"""No kernel is chosen by a measurement: after a restart the same request has the same bits."""

# Else a number of tokens that happens to be the model's width is taken for it, and another number compiled anew.
shapes.use_duck_shape = False


def compile_blocks(module: nn.Module, paths: Iterable[str]) -> None:
    """Compiles the submodules at `paths` once for all sizes; those of one kind share their code. Hooks around them stay
    outside, so their weights may come and go."""
    for path in paths:
        block = module.get_submodule(path)
        _replace(block, torch.compile(block.forward, fullgraph=True, dynamic=True, options=OPTIONS))


def compile_picture(module: nn.Module, path: str, shape: tuple[int, ...]) -> None:
    """Compiles a stack of convolutions for an input of `shape`, channels last; others are computed as before.

    Once for all sizes takes four times as long to compile, and the code is no faster than none (H100, FLUX.2's decoder:
    113 s and 57 ms; for one size 29 s and 40 ms; as it is 93 ms).
    """
    part = module.get_submodule(path)
    eager, compiled = part.forward, torch.compile(part.forward, fullgraph=True, dynamic=False, options=OPTIONS)

    def forward(states: torch.Tensor) -> torch.Tensor:
        if states.shape != shape:
            return eager(states)
        return compiled(states.contiguous(memory_format=torch.channels_last))

    _replace(part, forward)


def _replace(module: nn.Module, forward: Callable[..., Any]) -> None:
    """On the instance, under the hooks of its class's `__call__`."""
    module.__dict__["forward"] = forward
