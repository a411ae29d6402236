"""Flow matching: the straight way from noise to data, walked in Euler's steps. Pure functions."""

from __future__ import annotations

import torch

TRAIN_TIMESTEPS = 1000


def guide(towards: torch.Tensor, away: torch.Tensor, guidance: float) -> torch.Tensor:
    """What is predicted of the second prompt, and `guidance` times what the first changes of it."""
    return away + guidance * (towards - away)


def euler_step(sample: torch.Tensor, velocity: torch.Tensor, level: float, following: float) -> torch.Tensor:
    """x + (sigma' - sigma) v, in fp32, in the precision of `velocity`."""
    return (sample.float() + (following - level) * velocity.float()).to(velocity.dtype)
