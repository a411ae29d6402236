"""Colours as vision models read them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the colours in CLIP's training pictures, from 0 to 1."""


def to_colours(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """RGB in bytes as fp32 [height, width, 3], normalised by the mean and deviation above."""
    return (torch.from_numpy(pixels.astype(np.float32)) / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
