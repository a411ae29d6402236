"""Muon in batches against PyTorch's, one matrix at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.muon import MOMENTUM, Muon, orthogonal

SHAPES = ((8, 24), (24, 8), (8, 24), (16, 16))


def with_gradients(weights: Sequence[Tensor], generator: torch.Generator) -> None:
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


def test_steps_are_those_of_pytorch() -> None:
    ours = [torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k, shape in enumerate(SHAPES)]
    theirs = [torch.nn.Parameter(weight.clone()) for weight in ours]
    start = [weight.clone() for weight in ours]
    reference = torch.optim.Muon(
        theirs, lr=0.03, weight_decay=0.01, momentum=MOMENTUM, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    muon = Muon(ours, weight_decay=0.01)
    for step in range(3):
        for weights in (ours, theirs):
            with_gradients(weights, torch.Generator().manual_seed(100 + step))
        muon.step(0.03)
        reference.step()
    for mine, other, begin in zip(ours, theirs, start, strict=True):
        assert (mine - other).norm() < 0.05 * (mine - begin).norm(), "more than bf16 rounds"


def test_an_orthogonal_step_has_all_singular_values_near_one() -> None:
    made = orthogonal(torch.randn(4, 12, 48, generator=torch.Generator().manual_seed(0)))
    assert torch.linalg.svdvals(made).sub(1).abs().max() < 0.4
