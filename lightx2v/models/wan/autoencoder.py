"""Wan's autoencoder: normalised latents to a video, a latent frame at a time."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn

from lightx2v.core import GenerateRequest, Latents, Picture, Video
from lightx2v.errors import InvalidRequest, NonFinite
from lightx2v.models.component import Autoencoder
from lightx2v.models.configuration import read_configuration
from lightx2v.models.wan.recipe import VAE, read_recipe

ENCODER = ("encoder.", "quant_conv.")
"""Text to video begins at noise."""

FRAME_WIDTHS, SHARED_WIDTHS, VIDEO_COPIES = 20, 14, 4
"""Values at the peak, per pixel: so many of the decoder's narrowest widths for each frame that is decoded together with
others, and once; and copies of the video. The live tensors are a half of it; convolutions take nearly as much again."""


class WanAutoencoder(Autoencoder):
    blocks = ()
    """The decoder runs anew for every latent frame; it is small, and stays throughout a run."""
    module: AutoencoderKLWan

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.rate = read_recipe(checkpoint).clip.rate
        config = read_configuration(checkpoint, VAE)
        with torch.device("meta"):
            self.module = AutoencoderKLWan.from_config(config).eval().requires_grad_(False)
        nn.Module.to(self.module, dtype)  # diffusers' own warns of layers to be kept in fp32, also where there are none
        self.unreachable = frozenset(name for name in self.module.state_dict() if name.startswith(ENCODER))

    def workspace(self, request: GenerateRequest) -> int:
        """Linear in pixels: of the frames that are decoded together, and of the video that grows."""
        config, pixels = self.module.config, request.size.width * request.size.height
        together = min(request.frames, config.scale_factor_temporal)
        decode = (together * FRAME_WIDTHS + SHARED_WIDTHS) * (config.decoder_base_dim or config.base_dim)
        return pixels * (decode + VIDEO_COPIES * request.frames * config.out_channels) * self.dtype.itemsize

    def encode(self, request: GenerateRequest, picture: Picture, device: torch.device) -> NoReturn:
        """Raises InvalidRequest: there is nothing to look at."""
        raise InvalidRequest("image: this model makes videos of text alone", "image")

    @torch.no_grad()
    def decode(self, latents: Latents) -> Picture | Video:
        """One frame is a picture. Raises NonFinite rather than return a video of nothing."""
        shape = (latents.frames, latents.rows, latents.columns)
        # However the tokens lay in memory: convolutions round by the order that they find.
        normalised = latents.tokens.transpose(0, 1).contiguous().unflatten(1, shape)[None].float()
        shift, scale = (self._statistics(name, normalised.device) for name in ("latents_mean", "latents_std"))
        samples = self._decode((normalised * scale + shift).to(self.dtype))
        if not torch.isfinite(samples).all():
            raise NonFinite("the autoencoder produced values that are not finite")
        pixels = torch.stack([_levels(frame) for frame in samples.unbind(1)]).numpy()
        return Video(pixels, self.rate) if len(pixels) > 1 else Picture(pixels[0])

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[channels, frames, height, width]. What the decoder remembers of earlier frames is let go, come what may."""
        try:
            samples: torch.Tensor = self.module.decode(latents, return_dict=False)[0][0]
            return samples
        finally:
            self.module.clear_cache()

    def _statistics(self, name: str, device: torch.device) -> torch.Tensor:
        """[channels, 1, 1, 1]: the latents' mean or standard deviation."""
        return torch.tensor(self.module.config[name], device=device).view(-1, 1, 1, 1)


def _levels(frame: torch.Tensor) -> torch.Tensor:
    """[channels, height, width] from -1 to 1, to uint8 [height, width, channels] on the host."""
    levels = ((frame.float() * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu()
