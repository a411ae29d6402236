"""Z-Image's noise schedule: a linear one, shifted by a constant of the checkpoint. Pure functions."""

from __future__ import annotations

import numpy as np
import torch

from lightx2v.models.flow import TRAIN_TIMESTEPS


def noise_levels(steps: int, shift: float) -> torch.Tensor:
    """fp32 [steps + 1]: sigma = shift s / (1 + (shift - 1) s) for s from 1 down to 1 / steps, then 0."""
    linear = torch.linspace(1.0, 1 / steps, steps).numpy()
    shifted = shift * linear / (1 + (shift - 1) * linear)
    return torch.from_numpy(np.append(shifted, np.float32(0)).astype(np.float32))


def times(levels: torch.Tensor) -> torch.Tensor:
    """fp32 [steps]: 1 - sigma, in thousandths, as the transformer embeds it; rounded where the reference rounds."""
    return (TRAIN_TIMESTEPS - levels[:-1] * TRAIN_TIMESTEPS) / TRAIN_TIMESTEPS * TRAIN_TIMESTEPS


def first_step(steps: int, strength: float) -> int:
    """Which of `steps` is the first on the way from a picture; at least the last one is left."""
    return min(int(steps - min(steps * strength, steps)), steps - 1)
