"""Inpainting: the steps change one part of a picture, and the rest follows the picture itself."""

from __future__ import annotations

import torch

from lightx2v.models.flow import noised
from lightx2v.models.sampler import Stepper
from lightx2v.types import Latents

CHANNELS = 128
"""Channels of a token, at most: FLUX.2's."""

ALIVE = 6
"""fp32 copies of the latents at the peak of a step: the picture, the noise, and what is mixed of them."""


class Inpaint:
    """A solver that moves the edited part of the latents. The rest is the picture at each level of noise, so that both
    fit together when the transformer looks at them (diffusers' inpainting pipelines do the same).

    `levels`: fp32 [steps + 1]. `picture`: the latents of the picture, with the edited share of each token. `drawn`:
    fp32 [1, tokens, channels], the noise that the request starts from.
    """

    def __init__(
        self, stepper: Stepper, levels: torch.Tensor, picture: Latents, drawn: torch.Tensor, device: torch.device
    ) -> None:
        if picture.edited is None:
            raise ValueError("the latents of the picture came without a mask")
        self._stepper = stepper
        self._levels: list[float] = levels.tolist()
        self._clean, self._drawn = picture.tokens[None].to(device, torch.float32), drawn.to(device)
        self._edited = picture.edited.to(device)

    def step(self, latents: torch.Tensor, velocity: torch.Tensor, index: int) -> torch.Tensor:
        """m x + (1 - m) k, cast to the dtype of x: the moved latents x where the edited share m is 1, and the picture
        at the next level of noise k where it is 0."""
        moved = self._stepper.step(latents, velocity, index)
        kept = noised(self._clean, self._drawn, self._levels[index + 1])
        return ((1.0 - self._edited) * kept + self._edited * moved.float()).to(moved.dtype)

    def history(self) -> tuple[torch.Tensor, ...]:
        return self._stepper.history()


def inpaint_member_bytes(tokens: int) -> int:
    """Device bytes that inpainting keeps between two steps: the picture, the noise and the share of each token."""
    return tokens * (2 * CHANNELS + 1) * torch.float32.itemsize


def inpaint_bytes(tokens: int) -> int:
    """Device bytes that inpainting takes beside the step itself."""
    return tokens * ALIVE * CHANNELS * torch.float32.itemsize
