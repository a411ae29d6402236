"""The range of float16."""

from __future__ import annotations

import torch


def within_half(states: torch.Tensor) -> torch.Tensor:
    """`states`, clipped to the range of float16 if that is their dtype."""
    return states.clip(-65504, 65504) if states.dtype == torch.float16 else states
