"""fp8 by its definition, without torch's: what the engine's rounding and products must be."""

from __future__ import annotations

import re

import torch
from torch import nn

from lightx2v.layers.linear import Fp8Linear

MOST, LEAST_EXPONENT, FRACTION_BITS = 448.0, -6, 3
BLOCKS = re.compile(r"(^|\.)(transformer_blocks|single_transformer_blocks|layers|blocks|block)\.\d+\.")


def rounded(values: torch.Tensor) -> torch.Tensor:
    """To the nearest number of e4m3, of two the even one."""
    _, exponents = torch.frexp(values)
    steps = torch.exp2((exponents - 1).clamp(min=LEAST_EXPONENT).float() - FRACTION_BITS)
    return torch.round(values / steps) * steps


def by_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 [..., columns], numbers of e4m3, and [..., 1], what each row's are to be multiplied by: 1 / 448 of its
    largest, where 1 / 448 is rounded to fp32 first."""
    largest = matrix.float().abs().amax(dim=-1, keepdim=True)
    scales = torch.where(largest > 0, largest, torch.ones_like(largest)) * (1 / MOST)
    return rounded(matrix.float() / scales), scales


class Emulated(nn.Module):
    """A linear layer in fp8 that keeps what was put into it, call by call."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.codes, self.scales = by_rows(linear.weight.detach())
        self.weight = linear.weight
        self.bias = linear.bias
        self.inputs: list[torch.Tensor] = []

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        self.inputs.append(states)
        codes, scales = by_rows(states)
        product = (codes * scales) @ (self.codes * self.scales).T
        return product if self.bias is None else product + self.bias


def in_block(path: str) -> str:
    """From the list of blocks on: transformers calls what is around it as it likes."""
    found = BLOCKS.search(path)
    assert found is not None, path
    return path[found.start() :].removeprefix(".")


def kept_in_fp8(linear: nn.Linear) -> Fp8Linear:
    """The engine's layer in the place of `linear`, its states as they are by definition."""
    layer = Fp8Linear(linear)
    codes, scales = by_rows(linear.weight)
    layer.weight.copy_(codes.to(torch.float8_e4m3fn).view(torch.int8))
    layer.scale.copy_(scales)
    return layer


def emulate(module: nn.Module) -> dict[str, Emulated]:
    """Replaces the linear layers in blocks whose widths are multiples of 16; by their names."""
    linear = {path: layer for path, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    emulated = {
        path: Emulated(layer)
        for path, layer in linear.items()
        if BLOCKS.search(path) and layer.in_features % 16 == layer.out_features % 16 == 0
    }
    for path, layer in emulated.items():
        module.set_submodule(path, layer)
    return emulated
