"""Compiled code for parts of a module. Compiled and eager code differ in the last bit, so a request's shapes alone
decide which of the two it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.fx.experimental._config as shapes
from torch import nn

OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"deterministic": True}
"""Kernels are not chosen by measurement, so that a request has the same bits after a restart."""

MIXES = 128
"""How often the code of a block may be compiled; by default torch raises at the ninth time. The blocks of a GGUF file
may have as many mixes of types as there are blocks."""

# Else a number of tokens that happens to be the model's width is taken for it, and another number compiled anew.
shapes.use_duck_shape = False


def compile_blocks(module: nn.Module, paths: Iterable[str]) -> None:
    """Compiles the submodules at `paths` once for all sizes. Submodules of one kind share their code. Hooks stay
    outside of it, so that weights may come and go."""
    torch._dynamo.config.recompile_limit = MIXES  # here, because torch's compiler takes seconds to import
    for path in paths:
        block = module.get_submodule(path)
        _replace(block, torch.compile(block.forward, fullgraph=True, dynamic=True, options=OPTIONS))


def compile_picture(module: nn.Module, path: str, shape: tuple[int, ...]) -> None:
    """Compiles a stack of convolutions for inputs of `shape`, channels last. Other inputs are computed as before.

    Code for all sizes takes four times as long to compile and gains nothing (H100, FLUX.2's decoder: 113 s to compile
    and 57 ms a picture for all sizes, 29 s and 40 ms for one size, 93 ms without).
    """
    part = module.get_submodule(path)
    eager, compiled = part.forward, torch.compile(part.forward, fullgraph=True, dynamic=False, options=OPTIONS)

    def forward(states: torch.Tensor) -> torch.Tensor:
        if states.shape != shape:
            return eager(states)
        return compiled(states.contiguous(memory_format=torch.channels_last))

    _replace(part, forward)


def _replace(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Replaces `forward` on the instance, so that the hooks of `__call__` still run."""
    module.__dict__["forward"] = forward
