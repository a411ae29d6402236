"""Qwen-Image's noise schedule: a linear one, shifted by the number of tokens and stretched to its end. Pure functions
of what the checkpoint's scheduler says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.configuration import read_configuration, read_fields
from lightx2v.models.flow import TRAIN_TIMESTEPS

CONFIG = "scheduler/scheduler_config.json"


@dataclass(frozen=True, slots=True)
class Schedule:
    """`scheduler/scheduler_config.json`: the shift at two numbers of tokens, and the last level above zero."""

    base_shift: float
    max_shift: float
    base_image_seq_len: int
    max_image_seq_len: int
    shift_terminal: float | None

    def shift(self, tokens: int) -> float:
        """mu, on the straight line through the two given shifts."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return tokens * slope + (self.base_shift - slope * self.base_image_seq_len)

    def levels(self, tokens: int, steps: int, shift: float | None = None) -> torch.Tensor:
        """fp32 [steps + 1]: sigma = e^mu / (e^mu + 1/s - 1) for s from 1 down to 1 / steps, stretched so that the last
        one is `shift_terminal`, then 0. With a `shift`, that stands for e^mu, and nothing is stretched."""
        linear = np.linspace(1.0, 1 / steps, steps).astype(np.float32)
        stretch = math.exp(self.shift(tokens)) if shift is None else shift
        sigmas = stretch / (stretch + (1 / linear - 1))
        if self.shift_terminal and steps > 1 and shift is None:
            rest = 1 - sigmas
            sigmas = 1 - rest / (rest[-1] / (1 - self.shift_terminal))
        return torch.from_numpy(np.append(sigmas, 0).astype(np.float32))


def read_schedule(checkpoint: Path) -> Schedule:
    """The checkpoint's schedule. Raises InvalidCheckpoint if it is incomplete or of another kind."""
    values = read_configuration(checkpoint, CONFIG)
    if not values.get("use_dynamic_shifting") or values.get("time_shift_type", "exponential") != "exponential":
        raise InvalidCheckpoint(f"{checkpoint / CONFIG}: only exponential shifts by the number of tokens are supported")
    return read_fields(Schedule, checkpoint, CONFIG)


def timesteps(levels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`dtype` [steps]: from 1 down to 0, by way of 1000, rounded twice as the reference does."""
    return (levels[:-1] * TRAIN_TIMESTEPS).to(dtype) / TRAIN_TIMESTEPS
