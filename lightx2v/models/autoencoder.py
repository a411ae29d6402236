"""Autoencoders of diffusers that give a normal distribution for every latent: what FLUX.2's and Z-Image's share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from lightx2v.errors import NonFinite
from lightx2v.layers.compiled import compile_picture
from lightx2v.models.autoencoder_names import ldm_names
from lightx2v.models.component import Autoencoder, on_meta
from lightx2v.models.configuration import read_configuration
from lightx2v.models.spec import ModelSpec, read_grid
from lightx2v.types import GenerateRequest, Picture, Size
from lightx2v.weights.layout import WeightMap

PATCH = 2
"""Latents along one side of a token."""

DECODE_WIDTHS, ENCODE_WIDTHS = 6, 10
"""Values that are alive at the peak for each pixel, in widths of the largest layer at full size: the decoder's second,
the encoder's first. Half of them are tensors; convolutions take nearly as much again for themselves."""

COMPILED_DECODE_WIDTHS, COMPILED_ENCODE_WIDTHS = 3.2, 5
"""The same in compiled code, channels last, where norms and activations need no tensors of their own. 2.5 and 4 were
measured."""


class Normalised(Protocol):
    """A configuration that says how the latents of training were distributed, channel by channel."""

    @property
    def latents_mean(self) -> Sequence[float]: ...

    @property
    def latents_std(self) -> Sequence[float]: ...


class KLAutoencoder(Autoencoder):
    """An autoencoder of diffusers with a normal distribution for every latent. A subclass names diffusers' class and
    says how latents become tokens."""

    model: ClassVar[Any]
    unreachable: ClassVar[frozenset[str]] = frozenset()
    """States that no forward pass reads."""
    module: Any

    def __init__(self, checkpoint: Path, dtype: torch.dtype, spec: ModelSpec) -> None:
        super().__init__(dtype, spec)
        self._usual, _ = read_grid(checkpoint)
        self._is_compiled = False
        config = read_configuration(checkpoint, "vae/config.json")
        self.module = on_meta(lambda: self.model.from_config(config), dtype)
        self.names = ldm_names(len(self.module.config.block_out_channels))
        self.weights = WeightMap(
            (self.folder,), (*self.encode_blocks, *self.decode_blocks), unreachable=self.unreachable
        )

    def activation_bytes(self, request: GenerateRequest) -> int:
        """Linear in pixels; references are encoded one by one."""
        decode = self._live(request.size, self.decoder_widths()[1], DECODE_WIDTHS, COMPILED_DECODE_WIDTHS)
        first: int = self.module.config.block_out_channels[0]
        encode = (self._live(size, first, ENCODE_WIDTHS, COMPILED_ENCODE_WIDTHS) for size in self.encoded(request))
        return max(decode, *encode, 0)

    def compile(self) -> None:
        """Compiles both ways for pictures of the size that the autoencoder was trained on."""
        config, usual = self.module.config, self._usual
        scale = 2 ** (len(config.block_out_channels) - 1)
        latents = (1, config.latent_channels, usual.height // scale, usual.width // scale)
        compile_picture(self.module, "decoder", latents)
        compile_picture(self.module, "encoder", (1, 3, usual.height, usual.width))
        self._is_compiled = True

    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of the decoder's layers, the largest pictures' first."""
        widths: tuple[int, ...] = self.module.config.block_out_channels
        return widths

    @abstractmethod
    def encoded(self, request: GenerateRequest) -> tuple[Size, ...]:
        """The sizes in which references are encoded."""

    def _live(self, size: Size, width: int, widths: float, compiled: float) -> int:
        factor = compiled if self._is_compiled and size == self._usual else widths
        return int(size.width * size.height * width * factor) * self.dtype.itemsize

    def posterior(self, pixels: np.ndarray[Any, Any], device: torch.device) -> Any:
        """The distribution of the latents, [1, channels, height, width], of RGB in bytes, [height, width, 3]."""
        return self.module.encode(to_levels(pixels).to(device, self.dtype)).latent_dist

    def picture(self, latents: torch.Tensor) -> Picture:
        """The picture of latents as the encoder gave them. Raises NonFinite if a sample is not finite."""
        return to_picture(self.module.decode(latents).sample[0])


def latent_statistics(
    config: Normalised, device: torch.device, dtype: torch.dtype, axes: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents' mean and standard deviation, [channels, 1, ...] each, with as many ones as `axes`."""
    mean, deviation = (torch.tensor(values).to(device, dtype) for values in (config.latents_mean, config.latents_std))
    return mean.view(-1, *(1,) * axes), deviation.view(-1, *(1,) * axes)


def resize(picture: Picture, size: Size) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3]: the picture in another size."""
    resized = Image.fromarray(picture.pixels).resize((size.width, size.height), Image.Resampling.LANCZOS)
    return np.asarray(resized)


def to_levels(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """RGB in bytes, [height, width, 3], as fp32 [1, 3, height, width] from -1 to 1."""
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 255 * 2 - 1


def to_picture(samples: torch.Tensor) -> Picture:
    """The picture of samples from -1 to 1, [3, height, width]. Raises NonFinite if a sample is not finite."""
    if not torch.isfinite(samples).all():
        raise NonFinite("the autoencoder produced values that are not finite")
    levels = ((samples * 0.5 + 0.5).clamp(0, 1).float() * 255).round().to(torch.uint8)
    return Picture(levels.permute(1, 2, 0).contiguous().cpu().numpy())
