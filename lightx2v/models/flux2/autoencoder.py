"""FLUX.2's autoencoder: pictures to normalised latents and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from torch import nn

from lightx2v.core import GenerateRequest, Latents, Picture, Size
from lightx2v.errors import NonFinite
from lightx2v.models.component import Autoencoder
from lightx2v.models.configuration import read_configuration

PATCH = 2
"""A token is a square of so many latent positions."""

DECODE_WIDTHS, ENCODE_WIDTHS = 6, 10
"""Bytes at the peak per pixel, in widths of the layer that is the largest at full size: the second of the decoder, the
first of the encoder. The live tensors are a half of it; convolutions take nearly as much again for themselves."""


class Flux2Autoencoder(Autoencoder):
    blocks = ("encoder", "decoder")
    unreachable = frozenset({"bn.num_batches_tracked"})
    module: AutoencoderKLFlux2

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        config = read_configuration(checkpoint, "vae/config.json")
        with torch.device("meta"):
            self.module = AutoencoderKLFlux2.from_config(config).eval().requires_grad_(False)
        nn.Module.to(self.module, dtype)  # diffusers' own warns of layers to be kept in fp32, also where there are none

    def workspace(self, request: GenerateRequest) -> int:
        """Linear in pixels; references are encoded one by one."""
        config = self.module.config
        decoder = config.decoder_block_out_channels or config.block_out_channels
        decode = _area(request.size) * decoder[1] * DECODE_WIDTHS
        encode = max(map(_area, request.references), default=0) * config.block_out_channels[0] * ENCODE_WIDTHS
        return max(decode, encode) * self.dtype.itemsize

    @torch.no_grad()
    def encode(self, picture: Picture, device: torch.device) -> Latents:
        """The posterior's mean, in patches, normalised."""
        pixels = torch.from_numpy(picture.pixels.astype(np.float32)).permute(2, 0, 1)[None] / 255 * 2 - 1
        mean = self.module.encode(pixels.to(device, self.dtype)).latent_dist.mode()
        patches = torch.nn.functional.pixel_unshuffle(mean, PATCH)
        shift, scale = self._statistics()
        normalised = (patches - shift) / scale
        return Latents(normalised.flatten(2).transpose(1, 2)[0], *normalised.shape[-2:])

    @torch.no_grad()
    def decode(self, latents: Latents) -> Picture:
        """Raises NonFinite rather than return a picture of nothing."""
        shift, scale = self._statistics()
        tokens = latents.tokens.to(shift.device, self.dtype)
        patches = tokens.transpose(0, 1).unflatten(1, (latents.rows, latents.columns))[None] * scale + shift
        samples = self.module.decode(torch.nn.functional.pixel_shuffle(patches, PATCH)).sample
        if not torch.isfinite(samples).all():
            raise NonFinite("the autoencoder produced values that are not finite")
        levels = ((samples[0] * 0.5 + 0.5).clamp(0, 1).float() * 255).round().to(torch.uint8)
        return Picture(levels.permute(1, 2, 0).contiguous().cpu().numpy())

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, channels, 1, 1] each: the latents' mean and standard deviation."""
        norm = self.module.bn
        mean, deviation = norm.running_mean, torch.sqrt(norm.running_var + self.module.config.batch_norm_eps)
        return mean.view(1, -1, 1, 1), deviation.view(1, -1, 1, 1)


def _area(size: Size) -> int:
    return size.width * size.height
