"""How a reference picture enters the transformer: beside the noise, or in place of the first frame's."""

from __future__ import annotations

import torch


class Condition:
    """No picture: the transformer sees the latents, [1, channels, frames, rows, columns], all of the same timestep."""

    def show(self, latents: torch.Tensor) -> torch.Tensor:
        """What the transformer sees in place of `latents`."""
        return latents

    def times(self, timestep: torch.Tensor) -> torch.Tensor:
        """[1], or [frames] where each frame has a timestep of its own."""
        return timestep[None]

    def keep(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents after a step."""
        return latents


class Beside(Condition):
    """In channels of its own, after a mask of the frames that are given: a channel for each frame that is decoded of a
    latent one."""

    def __init__(self, given: torch.Tensor, multiple: int) -> None:
        mask = torch.zeros_like(given[:, :1]).repeat(1, multiple, 1, 1, 1)
        mask[:, :, 0] = 1
        self._channels = torch.cat((mask, given), dim=1)

    def show(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat((latents, self._channels), dim=1)


class FirstFrame(Condition):
    """In place of the first latent frame, at a timestep of 0: there is no noise in it."""

    def __init__(self, first: torch.Tensor, frames: int) -> None:
        self._first = first
        self._noisy = torch.arange(frames) > 0

    def show(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat((self._first, latents[:, :, 1:]), dim=2)

    def times(self, timestep: torch.Tensor) -> torch.Tensor:
        return timestep * self._noisy

    def keep(self, latents: torch.Tensor) -> torch.Tensor:
        return self.show(latents)
