"""Qwen-Image's autoencoder for stills: normalised latents to pictures, and in edit models reference pictures to
latents."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from lightx2v.errors import InvalidRequest
from lightx2v.models.autoencoder import latent_statistics, to_levels, to_picture
from lightx2v.models.component import Autoencoder, on_meta
from lightx2v.models.qwen_image.decoder import StillDecoder, read_shape
from lightx2v.models.qwen_image.spec import PATCH
from lightx2v.models.qwen_image.still_encoder import StillAutoencoder
from lightx2v.models.spec import ModelSpec
from lightx2v.types import GenerateRequest, Latents, Picture, Size
from lightx2v.weights.layout import WeightMap

TIME = 2
"""The time dimension of a stored convolution's weights, which a still does not need. Norms have one there too."""

DECODE_WIDTHS, ENCODE_WIDTHS, MARGIN = 4, 3, 1.9
"""Values that are alive at the peak for each pixel, in widths of the decoder's last layer, which is the encoder's
first, beside one width in fp32. Convolutions take nearly as much again for themselves."""


class QwenImageAutoencoder(Autoencoder):
    """The decoder, for models that make pictures from text alone."""

    halves: ClassVar[tuple[str, ...]] = ("decoder",)
    """The submodules that are there, in order of use."""
    unread: ClassVar[tuple[str, ...]] = (r".*\.time_conv\..*", r"encoder\..*", r"(quant_conv|conv1)\..*")
    """The tensors that a still does not need, as regular expressions."""
    model: ClassVar[type[StillDecoder]] = StillDecoder
    module: StillDecoder

    def __init__(self, checkpoint: Path, dtype: torch.dtype, spec: ModelSpec) -> None:
        super().__init__(dtype, spec)
        self.shape = read_shape(checkpoint)
        self.module = on_meta(lambda: self.model(self.shape), dtype)
        stills = {name: TIME for name in self.module.state_dict() if _has_time(name)}
        self.weights = WeightMap((self.folder,), self.halves, last_slices=stills, unread=self.unread)

    def activation_bytes(self, request: GenerateRequest) -> int:
        """Linear in pixels."""
        return self._live(request.size, DECODE_WIDTHS)

    def encode(self, request: GenerateRequest, picture: Picture, device: torch.device) -> Latents:
        raise InvalidRequest("this model makes pictures from text alone", "image")

    @torch.no_grad()
    def decode(self, latents: Latents) -> Picture:
        """The picture of `latents`. Raises NonFinite if a sample is not finite."""
        tokens = latents.tokens.to(self.module.post_quant_conv.weight.device, self.dtype)
        patches = tokens.transpose(0, 1).unflatten(1, (latents.rows, latents.columns))[None]
        mean, deviation = latent_statistics(self.shape, tokens.device, self.dtype)
        # The reference divides by the inverse here, which rounds otherwise than a product would.
        return to_picture(self.module(pixel_shuffle(patches, PATCH) / (1.0 / deviation) + mean)[0])

    def _live(self, size: Size, widths: int) -> int:
        values = size.width * size.height * self.shape.base_dim
        return int(MARGIN * values * (widths * self.dtype.itemsize + torch.float32.itemsize))


class QwenImageEditAutoencoder(QwenImageAutoencoder):
    """The decoder and the encoder, for edit models."""

    halves = ("encoder", "decoder")
    unread = (r".*\.time_conv\..*",)
    model = StillAutoencoder
    module: StillAutoencoder

    def activation_bytes(self, request: GenerateRequest) -> int:
        """References are encoded one by one."""
        encoding = (self._live(size, ENCODE_WIDTHS) for size in request.references)
        return max((super().activation_bytes(request), *encoding))

    @torch.no_grad()
    def encode(self, request: GenerateRequest, picture: Picture, device: torch.device) -> Latents:
        """The posterior's mean, normalised, in patches."""
        mean = self.module.encode(to_levels(picture.pixels).to(device, self.dtype))
        shift, deviation = latent_statistics(self.shape, device, self.dtype)
        patches = pixel_unshuffle((mean - shift) / deviation, PATCH)
        return Latents(patches.flatten(2).transpose(1, 2)[0], *patches.shape[-2:])


def _has_time(name: str) -> bool:
    """Whether a stored weight has a time dimension: all have one but those of attention and resampling, and biases."""
    return not name.endswith(".bias") and not {"attentions", "resample"} & set(name.split("."))
