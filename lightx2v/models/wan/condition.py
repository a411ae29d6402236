"""How a reference picture enters the transformer: beside the noise, or in place of the first frame's."""

from __future__ import annotations

import torch


class Condition:
    """The condition without a picture: the transformer sees the latents, [1, channels, frames, rows, columns], all at
    one timestep."""

    def show(self, latents: torch.Tensor) -> torch.Tensor:
        """What the transformer sees in place of `latents`."""
        return latents

    def times(self, timestep: torch.Tensor) -> torch.Tensor:
        """The timesteps that the transformer sees: [1], or [frames] if each frame has its own."""
        return timestep[None]

    def keep(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents after a step, with the picture where it belongs."""
        return latents


class PictureChannels(Condition):
    """A picture in channels of its own, after a mask of the given frames. The mask has a channel for each frame that is
    decoded of a latent one."""

    def __init__(self, given: torch.Tensor, multiple: int) -> None:
        mask = torch.zeros_like(given[:, :1]).repeat(1, multiple, 1, 1, 1)
        mask[:, :, 0] = 1
        self._channels = torch.cat((mask, given), dim=1)

    def show(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat((latents, self._channels), dim=1)


class FirstFrame(Condition):
    """A picture in place of the first latent frame, at timestep 0, since it has no noise."""

    def __init__(self, first: torch.Tensor, frames: int) -> None:
        self._first = first
        self._noisy = torch.arange(frames) > 0

    def show(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat((self._first, latents[:, :, 1:]), dim=2)

    def times(self, timestep: torch.Tensor) -> torch.Tensor:
        return timestep * self._noisy

    def keep(self, latents: torch.Tensor) -> torch.Tensor:
        return self.show(latents)
