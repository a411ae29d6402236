"""Linear layers in fp8."""

from __future__ import annotations

import torch
from torch import nn

from lightx2v.fp8 import Rows, quantise

MULTIPLE = 16
"""Both widths of a layer must be multiples of it for the fp8 product."""


class Fp8Linear(nn.Linear):
    """A linear layer with weights in fp8 (e4m3), one scale for each output row. Inputs are rounded to e4m3 token by
    token; sums are in fp32.

    `weight` holds the bits of the e4m3 codes as int8 [out, in], because some callers cast their input to a weight's
    dtype if that is floating point. `scale` is fp32 [out, 1].
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        codes = torch.empty_like(linear.weight, dtype=torch.int8, requires_grad=False)
        scales = linear.weight.new_empty(linear.out_features, 1, dtype=torch.float32)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scales, requires_grad=False)
        self.bias = linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        inputs = quantise(states.reshape(-1, self.in_features))
        weight = Rows(self.weight.view(torch.float8_e4m3fn), self.scale)
        product = _emulated if states.device.type == "cpu" else _product
        return product(inputs, weight, self.bias).to(states.dtype).view(*states.shape[:-1], self.out_features)


def _product(inputs: Rows, weight: Rows, bias: torch.Tensor | None) -> torch.Tensor:
    """The product on a GPU, in bf16: the only output that row-wise scales can have on all such GPUs. Sums of 22 bits
    add at most 0.4 % of the norm to the 3.8 % of the rounding, and are 7 to 27 % faster (H100, the shapes of
    klein-9B)."""
    return torch._scaled_mm(
        inputs.codes,
        weight.codes.t(),
        scale_a=inputs.scales,
        scale_b=weight.scales.t(),
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def _emulated(inputs: Rows, weight: Rows, bias: torch.Tensor | None) -> torch.Tensor:
    """The same product in fp32, on a CPU."""
    product = inputs.codes.float() @ weight.codes.float().t() * inputs.scales * weight.scales.t()
    return product if bias is None else product + bias
