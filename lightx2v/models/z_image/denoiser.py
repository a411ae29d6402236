"""Z-Image's denoising: noise, or a picture and noise, to latents, along the schedule, guided by captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from lightx2v.layers.rope import Rope, rope_table
from lightx2v.models.component import Denoiser, on_meta
from lightx2v.models.flow import TRAIN_TIMESTEPS, noise
from lightx2v.models.sampler import SamplingState
from lightx2v.models.visits import Visits
from lightx2v.models.z_image.names import TRANSFORMER
from lightx2v.models.z_image.spec import MAX_TOKENS, ZImageSpec
from lightx2v.models.z_image.transformer import (
    PATCH,
    Places,
    Sequences,
    ZImageTransformer,
    padding,
    read_shape,
    to_tokens,
)
from lightx2v.types import Conditioning, GenerateRequest, Latents
from lightx2v.weights.layout import WeightMap

UNREAD = (r"norm_final\.weight",)
"""A norm in the makers' single files that no forward pass reads."""

WIDTHS_PER_TOKEN = 13
"""Live activations of a step at their peak, in hidden widths per token: 11.3 were counted, and a seventh is to
spare."""


class ZImageConditions(NamedTuple):
    """What the transformer reads besides the image's tokens, on its device."""

    captions: tuple[torch.Tensor, ...]
    """[tokens, features] of each branch."""
    times: torch.Tensor
    """[steps]."""
    places: Places


class ZImageDenoiser(Denoiser[ZImageConditions]):
    """Z-Image's transformer with its schedule; a reference is where the steps start."""

    names = TRANSFORMER
    module: ZImageTransformer
    spec: ZImageSpec

    def __init__(self, checkpoint: Path, dtype: torch.dtype, spec: ZImageSpec) -> None:
        super().__init__(dtype, spec)
        self.shape = read_shape(checkpoint)
        self.module = on_meta(lambda: ZImageTransformer(self.shape), dtype)
        refiners, layers = range(self.shape.n_refiner_layers), range(self.shape.n_layers)
        noise, context = ([f"{part}_refiner.{index}" for index in refiners] for part in ("noise", "context"))
        blocks = (*noise, *context, *(f"layers.{index}" for index in layers))
        self.weights = WeightMap((self.folder,), blocks, unread=UNREAD)

    def activation_bytes(self, request: GenerateRequest) -> int:
        """Activations are linear in the tokens of captions and images, of both branches of a guided step."""
        per_token = WIDTHS_PER_TOKEN * self.shape.dim * self.dtype.itemsize
        rope = 2 * self.shape.head_dim * torch.float32.itemsize
        conditioning = 2 * MAX_TOKENS * self.shape.cap_feat_dim * self.dtype.itemsize
        return self.branches(request) * sum(self._tokens(request)) * (per_token + rope) + conditioning

    def held_bytes(self, request: GenerateRequest) -> int:
        """The states and angles of all tokens of both branches, with other angles for images and captions apart; the
        captions, and the latents as they are and as the transformer sees them."""
        (image, caption), branches, shape = self._tokens(request), self.branches(request), self.shape
        values = branches * ((image + caption) * shape.dim + caption * shape.cap_feat_dim) + image * shape.token
        precise = 2 * branches * (image + caption) * shape.head_dim + image * shape.token
        return values * self.dtype.itemsize + precise * torch.float32.itemsize

    def operations(self, request: GenerateRequest) -> float:
        """Two operations for each weight and token, and four for each pair of tokens and each width in attention."""
        image, caption = self._tokens(request)
        refined = self._flops(self.module.noise_refiner, image) + self._flops(self.module.context_refiner, caption)
        return float(self.branches(request) * (refined + self._flops(self.module.layers, image + caption)))

    def start(
        self, request: GenerateRequest, conditioning: Conditioning, references: Sequence[Latents], device: torch.device
    ) -> SamplingState[ZImageConditions]:
        """The state before the first step. Its latents are fp32, as in the reference."""
        levels = noise_levels(request.steps, self.spec.shift if request.shift is None else request.shift)
        captions = tuple(text.to(device, self.dtype) for text in conditioning.branches)
        places = self._places(self.grid(request.size), [len(text) for text in captions], device)
        conditions = ZImageConditions(captions, times(levels).to(device), places)
        return self.start_euler(request, conditions, levels, self._noise(request), references, device)

    def predict(self, state: SamplingState[ZImageConditions]) -> Visits[torch.Tensor]:
        """[branches, tokens, token]: the reverse of the velocity, which this transformer was trained to predict."""
        captions, times, places = state.conditions
        time = times[state.step : state.step + 1]
        reverse = yield from self.module(state.latents[0].to(self.dtype), captions, time, places)
        return reverse.float()

    def guide(self, towards: torch.Tensor, away: torch.Tensor, guidance: float) -> torch.Tensor:
        """[1, ...]: the guided velocity, in which a scale of 0 is no guidance."""
        return towards + guidance * (towards - away)

    def velocity(self, state: SamplingState[ZImageConditions]) -> Visits[torch.Tensor]:
        reverse = yield from super().velocity(state)
        return -reverse

    def _tokens(self, request: GenerateRequest) -> tuple[int, int]:
        """Tokens of the image and of the longest caption, both padded."""
        image = math.prod(self.grid(request.size))
        return image + padding(image), MAX_TOKENS

    def _flops(self, blocks: nn.Module, tokens: int) -> int:
        """Operations of one branch in all of `blocks`. Modulations have one token each and are left out."""
        weights = 4 * self.shape.dim**2 + 3 * self.shape.dim * self.shape.hidden
        return len(list(blocks.children())) * tokens * (2 * weights + 4 * tokens * self.shape.dim)

    def _noise(self, request: GenerateRequest) -> torch.Tensor:
        """[1, tokens, token], on the host. The reference pipeline first draws the picture from its posterior, which the
        autoencoder did."""
        shape = (1, self.shape.in_channels, *(PATCH * side for side in self.grid(request.size)))
        return to_tokens(noise(shape, request.seed, skip=len(request.references)), PATCH)

    def _places(self, grid: tuple[int, int], captions: Sequence[int], device: torch.device) -> Places:
        texts = [_caption_ids(tokens) for tokens in captions]
        images = [_image_ids(len(text) + 1, *grid) for text in texts]
        joint = [torch.cat(branch) for branch in zip(images, texts, strict=True)]
        return Places(*(self._sequences(parts, device) for parts in (images, texts, joint)))

    def _sequences(self, ids: Sequence[torch.Tensor], device: torch.device) -> Sequences:
        rope: Rope = rope_table(torch.cat(list(ids)), self.shape.axes_dims, self.shape.rope_theta)
        return Sequences(rope.to(device), tuple(map(len, ids)))


def noise_levels(steps: int, shift: float) -> torch.Tensor:
    """fp32 [steps + 1]: sigma = shift s / (1 + (shift - 1) s) for s from 1 down to 1 / steps, then 0."""
    linear = torch.linspace(1.0, 1 / steps, steps).numpy()
    shifted = shift * linear / (1 + (shift - 1) * linear)
    return torch.from_numpy(np.append(shifted, np.float32(0)).astype(np.float32))


def times(levels: torch.Tensor) -> torch.Tensor:
    """fp32 [steps]: 1000 (1 - sigma), as the transformer embeds it, rounded where the reference rounds."""
    return (TRAIN_TIMESTEPS - levels[:-1] * TRAIN_TIMESTEPS) / TRAIN_TIMESTEPS * TRAIN_TIMESTEPS


def _caption_ids(tokens: int) -> torch.Tensor:
    """[padded, 3]: along the first rotary axis from 1 on, padding too."""
    ids = torch.zeros(tokens + padding(tokens), 3, dtype=torch.long)
    ids[:, 0] = torch.arange(1, len(ids) + 1)
    return ids


def _image_ids(first: int, rows: int, columns: int) -> torch.Tensor:
    """[padded, 3]: behind the caption, then row and column; padding at the origin."""
    ids = torch.cartesian_prod(torch.tensor([first]), torch.arange(rows), torch.arange(columns))
    return torch.cat((ids, torch.zeros(padding(len(ids)), 3, dtype=torch.long)))
