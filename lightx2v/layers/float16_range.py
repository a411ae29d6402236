"""What a floating-point type can hold."""

from __future__ import annotations

import torch


def within_half(states: torch.Tensor) -> torch.Tensor:
    """Clipped to what float16 can hold, if that is the precision."""
    return states.clip(-65504, 65504) if states.dtype == torch.float16 else states
