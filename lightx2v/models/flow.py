"""Flow matching: noise becomes data along straight lines, in Euler steps. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

TRAIN_TIMESTEPS = 1000


def noise(shape: Sequence[int], seed: int, skip: int = 0) -> torch.Tensor:
    """fp32 standard normal values in `shape`, after `skip` others of that shape were drawn from the same seed.

    Drawn on the host, so that a seed means the same picture on every device.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(skip):
        torch.randn(shape, generator=generator, dtype=torch.float32)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def noised(clean: torch.Tensor, drawn: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
    """sigma n + (1 - sigma) x: data `clean` at the noise level sigma, on its straight line to the noise `drawn`."""
    return level * drawn + (1.0 - level) * clean


def first_step(steps: int, strength: float) -> int:
    """The index of the first step when a picture is the start. At least the last step is left."""
    return min(int(steps - min(steps * strength, steps)), steps - 1)


def guide(towards: torch.Tensor, away: torch.Tensor, guidance: float) -> torch.Tensor:
    """Classifier-free guidance: away + guidance * (towards - away), of the velocities for two prompts."""
    return away + guidance * (towards - away)


def euler_step(sample: torch.Tensor, velocity: torch.Tensor, level: float, following: float) -> torch.Tensor:
    """x + (sigma' - sigma) v, in fp32, cast to the dtype of `velocity`."""
    return (sample.float() + (following - level) * velocity.float()).to(velocity.dtype)
