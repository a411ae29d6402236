"""Every norm, bias and statistic random, so that a tensor that is not loaded, or to the wrong place, shows."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def randomise(module: Module, seed: int) -> Module:
    """Random values for every parameter and statistic, of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("embed_tokens.weight"):
            parameter.copy_(0.5 * noise)
        elif parameter.dim() == 1 or name.endswith("gamma"):
            is_norm = "norm" in name and name.endswith(("weight", "gamma"))
            parameter.copy_(float(is_norm) + 0.1 * noise)
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module.eval()
