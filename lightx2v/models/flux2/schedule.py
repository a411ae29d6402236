"""FLUX.2's noise schedule: a linear one, shifted by the number of tokens. Pure functions."""

from __future__ import annotations

import math

import numpy as np
import torch

from lightx2v.models.flow import TRAIN_TIMESTEPS


def shift(tokens: int, steps: int) -> float:
    """The shift mu of the schedule for `tokens` target tokens: two empirical lines, for 10 and for 200 steps, and the
    straight line between them; beyond 4300 tokens the one for 200 (Black Forest Labs' `compute_empirical_mu`)."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190.0
    return slope * steps + (at_200 - 200.0 * slope)


def noise_levels(tokens: int, steps: int) -> torch.Tensor:
    """fp32 [steps + 1]: sigma = e^mu / (e^mu + 1/s - 1) for s from 1 down to 1 / steps, then 0."""
    linear = np.linspace(1.0, 1 / steps, steps).astype(np.float32)
    stretch = math.exp(shift(tokens, steps))
    return torch.from_numpy(np.append(stretch / (stretch + (1 / linear - 1)), np.float32(0)).astype(np.float32))


def timesteps(levels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`dtype` [steps]: sigma * 1000 as the transformer embeds it.

    The reference rounds three times in its own precision, and so does this: in bf16 967.384 becomes 968.
    """
    return (levels[:-1] * TRAIN_TIMESTEPS).to(dtype) / TRAIN_TIMESTEPS * TRAIN_TIMESTEPS
