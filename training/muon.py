"""Muon (Jordan and others, 2024, https://kellerjordan.github.io/posts/muon), for many small matrices at once.

`torch.optim.Muon` takes one matrix at a time; the encoder alone has 189 of them, and their launches would take longer
than a training step. Here all of a shape are one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
RMS = 0.2
"""Of an update at learning rate 1: about Adam's (Moonlight, https://arxiv.org/abs/2502.16982)."""


class Muon:
    """Momentum whose steps are made orthogonal: what is rare in the data moves as far as what is common."""

    def __init__(self, matrices: Iterable[Tensor], weight_decay: float) -> None:
        shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            shapes[matrix.shape].append(matrix)
        self._groups = list(shapes.values())
        self._momenta = [torch.zeros_like(torch.stack(group)) for group in self._groups]
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonal(gradient.lerp(momentum, MOMENTUM))
            scale = RMS * max(update.shape[-2:]) ** 0.5
            torch._foreach_mul_(group, 1 - rate * self._weight_decay)
            torch._foreach_add_(group, list(update.unbind(0)), alpha=-rate * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to each of [batch, rows, columns], about: by a Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = (matrices.mT if tall else matrices).bfloat16()
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide.mT if tall else wide).to(matrices.dtype)
