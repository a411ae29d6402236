"""Z-Image's autoencoder, which is FLUX.1's: pictures to scaled latents and back."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from lightx2v.core import GenerateRequest, Latents, Picture, Size
from lightx2v.models.autoencoder import PATCH, KLAutoencoder, resize
from lightx2v.models.flow import noise
from lightx2v.models.z_image.transformer import to_grid, to_tokens


class ZImageAutoencoder(KLAutoencoder):
    """FLUX.1's autoencoder; latents are shifted and scaled by constants of the checkpoint."""

    model = AutoencoderKL
    module: AutoencoderKL

    def encoded(self, request: GenerateRequest) -> tuple[Size, ...]:
        return (request.size,) * len(request.references)

    @torch.no_grad()
    def encode(self, request: GenerateRequest, picture: Picture, device: torch.device) -> Latents:
        """The picture in the request's size, drawn from the posterior with the first noise of the seed, scaled, as
        tokens."""
        posterior = self.posterior(resize(picture, request.size), device)
        chance = noise(posterior.mean.shape, request.seed).to(device)
        drawn = posterior.mean.float() + posterior.std.float() * chance
        config = self.module.config
        scaled = (drawn - config.shift_factor) * config.scaling_factor
        return Latents(to_tokens(scaled, PATCH)[0], *(side // PATCH for side in scaled.shape[-2:]))

    @torch.no_grad()
    def decode(self, latents: Latents) -> Picture:
        config = self.module.config
        grid = to_grid(latents.tokens[None], latents.rows, latents.columns, PATCH).to(self.dtype)
        return self.picture(grid / config.scaling_factor + config.shift_factor)
