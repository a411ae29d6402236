"""Runs the work of one request that has a model's blocks to itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from lightx2v.models.component import Denoiser
from lightx2v.models.sampler import sample
from lightx2v.models.visits import Visits
from lightx2v.types import Conditioning, GenerateRequest, Latents

T = TypeVar("T")


def finish(visits: Visits[T]) -> T:
    """The result of a work that has the blocks to itself."""
    while True:
        try:
            next(visits)
        except StopIteration as end:
            result: T = end.value
            return result


@torch.no_grad()
def take_steps(
    denoiser: Denoiser[Any],
    request: GenerateRequest,
    conditioning: Conditioning,
    references: Sequence[Latents],
    device: torch.device,
) -> list[Latents]:
    """The latents after each step."""
    state = denoiser.start(request, conditioning, references, device)
    taken: list[Latents] = []
    finish(sample(state, denoiser.velocity, lambda: taken.append(denoiser.latents(state))))
    return taken


@torch.no_grad()
def first_velocity(
    denoiser: Denoiser[Any],
    request: GenerateRequest,
    conditioning: Conditioning,
    references: Sequence[Latents],
    device: torch.device,
) -> torch.Tensor:
    """[1, ...]: where the first step leads."""
    return finish(denoiser.velocity(denoiser.start(request, conditioning, references, device)))
