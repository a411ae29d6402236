"""FLUX.2's autoencoder: pictures to normalised latents and back."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2

from lightx2v.core import GenerateRequest, Latents, Picture, Size
from lightx2v.models.autoencoder import PATCH, KLAutoencoder


class Flux2Autoencoder(KLAutoencoder):
    """FLUX.2's autoencoder. A token is a patch of two by two latents, normalised by the statistics of a batch norm."""

    model = AutoencoderKLFlux2
    unreachable = frozenset({"bn.num_batches_tracked"})
    module: AutoencoderKLFlux2

    def decoder_widths(self) -> tuple[int, ...]:
        return self.module.config.decoder_block_out_channels or super().decoder_widths()

    def encoded(self, request: GenerateRequest) -> tuple[Size, ...]:
        return request.references

    @torch.no_grad()
    def encode(self, request: GenerateRequest, picture: Picture, device: torch.device) -> Latents:
        """The posterior's mean, in patches, normalised, as tokens."""
        mean = self.posterior(picture.pixels, device).mode()
        patches = torch.nn.functional.pixel_unshuffle(mean, PATCH)
        shift, scale = self._statistics()
        normalised = (patches - shift) / scale
        return Latents(normalised.flatten(2).transpose(1, 2)[0], *normalised.shape[-2:])

    @torch.no_grad()
    def decode(self, latents: Latents) -> Picture:
        shift, scale = self._statistics()
        tokens = latents.tokens.to(shift.device, self.dtype)
        patches = tokens.transpose(0, 1).unflatten(1, (latents.rows, latents.columns))[None] * scale + shift
        return self.picture(torch.nn.functional.pixel_shuffle(patches, PATCH))

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, channels, 1, 1] each: the latents' mean and standard deviation."""
        norm = self.module.bn
        mean, deviation = norm.running_mean, torch.sqrt(norm.running_var + self.module.config.batch_norm_eps)
        return mean.view(1, -1, 1, 1), deviation.view(1, -1, 1, 1)
