"""Wan's autoencoder: a picture to the latents of a clip, and normalised latents to a video, frame by latent frame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from lightx2v.errors import InvalidRequest, NonFinite
from lightx2v.models.autoencoder import latent_statistics, resize, to_levels
from lightx2v.models.autoencoder_names import wan_names, wan_residual_names
from lightx2v.models.component import Autoencoder, on_meta
from lightx2v.models.configuration import read_configuration
from lightx2v.models.wan.latents import to_grid, to_latents
from lightx2v.models.wan.spec import TEXT_ALONE, WanSpec
from lightx2v.models.wan.variant import VAE
from lightx2v.types import GenerateRequest, Latents, Picture, Video
from lightx2v.weights.layout import WeightMap

ENCODER = ("encoder.", "quant_conv.")
"""Prefixes of the states that a model of text alone never reads."""

WIDTHS, RESIDUAL_WIDTHS, VIDEO_COPIES = (20, 14), (38, 4), 4
"""Peak live values per pixel, in multiples of the narrowest decoder width: (for each jointly decoded frame, once per
clip), in the plain and in the residual decoder; then copies of the output video. Half of the values are tensors;
convolutions take nearly as much again."""


class WanAutoencoder(Autoencoder):
    """diffusers' autoencoder of Wan, a picture to latents and latents to a video."""

    module: AutoencoderKLWan
    spec: WanSpec

    def __init__(self, checkpoint: Path, dtype: torch.dtype, spec: WanSpec) -> None:
        super().__init__(dtype, spec)
        config = read_configuration(checkpoint, VAE)
        self.module = on_meta(lambda: AutoencoderKLWan.from_config(config), dtype)
        tabulate = wan_residual_names if self.module.config.is_residual else wan_names
        self.names = tabulate(len(self.module.config.dim_mult), self.module.config.num_res_blocks)
        # No block streams: the decoder runs anew for every latent frame, and it is small enough to stay.
        unreachable = frozenset(filter(self._is_unreachable, self.module.state_dict()))
        self.weights = WeightMap((self.folder,), unreachable=unreachable)

    def activation_bytes(self, request: GenerateRequest) -> int:
        """Bytes of decoding, since encoding takes less. They are linear in positions of the last layer: in the frames
        that are decoded together, and in the video that grows."""
        config = self.module.config
        positions = request.size.width * request.size.height // (config.patch_size or 1) ** 2
        each, once = RESIDUAL_WIDTHS if config.is_residual else WIDTHS
        together = min(request.frames, config.scale_factor_temporal)
        decode = (together * each + once) * (config.decoder_base_dim or config.base_dim)
        return positions * (decode + VIDEO_COPIES * request.frames * config.out_channels) * self.dtype.itemsize

    @torch.no_grad()
    def encode(self, request: GenerateRequest, picture: Picture, device: torch.device) -> Latents:
        """The posterior's mean, normalised, for the picture in the request's size. Grey frames follow it where the
        transformer sees all frames.

        Raises InvalidRequest if the model looks at no pictures.
        """
        if not self.spec.max_references:
            raise InvalidRequest(TEXT_ALONE, "image")
        first = to_levels(resize(picture, request.size)).to(device, self.dtype)
        frames = 1 if self.spec.expand_timesteps else request.frames
        clip = F.pad(first[:, :, None], (0, 0, 0, 0, 0, frames - 1))
        with self._forgetting():
            mean = self.module.encode(clip, return_dict=False)[0].mode()[0].float()
        shift, scale = latent_statistics(self.module.config, device, torch.float32, axes=3)
        return to_latents((mean - shift) / scale)

    @torch.no_grad()
    def decode(self, latents: Latents) -> Picture | Video:
        """The video of `latents`, or the picture if they have one frame. Raises NonFinite if a sample is not finite."""
        shift, scale = latent_statistics(self.module.config, latents.tokens.device, torch.float32, axes=3)
        grid = (to_grid(latents).float() * scale + shift).to(self.dtype)
        with self._forgetting():
            samples = self.module.decode(grid[None], return_dict=False)[0][0]
        if not torch.isfinite(samples).all():
            raise NonFinite("the autoencoder produced values that are not finite")
        pixels = torch.stack([_levels(frame) for frame in samples.unbind(1)]).numpy()
        return Video(pixels, self.spec.video.rate) if len(pixels) > 1 else Picture(pixels[0])

    def _is_unreachable(self, name: str) -> bool:
        """Whether no run reads a state. A single frame needs no convolution that makes frames fewer."""
        is_read = self.spec.min_references or (self.spec.max_references and ".time_conv." not in name)
        return name.startswith(ENCODER) and not is_read

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """On leaving, drops what the module remembers of earlier frames."""
        try:
            yield
        finally:
            self.module.clear_cache()


def _levels(frame: torch.Tensor) -> torch.Tensor:
    """[channels, height, width] from -1 to 1, to uint8 [height, width, channels] on the host."""
    levels = ((frame.float() * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu()
