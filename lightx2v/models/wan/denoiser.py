"""Wan's denoising: noise to the latents of a video, along the schedule, guided by text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lightx2v.layers.rope import Rope, rope_table
from lightx2v.models.component import Denoiser, on_meta
from lightx2v.models.configuration import read_configuration
from lightx2v.models.flow import noise
from lightx2v.models.sampler import SamplingState
from lightx2v.models.visits import Visits
from lightx2v.models.wan.condition import Condition, FirstFrame, PictureChannels
from lightx2v.models.wan.latents import to_grid, to_latents
from lightx2v.models.wan.names import TRANSFORMER
from lightx2v.models.wan.schedule import Schedule, UniPC
from lightx2v.models.wan.spec import MAX_TOKENS, WanSpec
from lightx2v.models.wan.transformer import WanTransformer, read_shape
from lightx2v.models.wan.variant import VAE
from lightx2v.types import Conditioning, GenerateRequest, Latents
from lightx2v.weights.layout import WeightMap

ROPE_THETA = 10000.0

PRECISE = ("condition_embedder.time_embedder.", "scale_shift_table", "norm1.", "norm2.")
"""States with such a part in their name stay in fp32, as in the reference."""

ATTENTION_WIDTHS, OUTER_WIDTHS, MARGIN = 11.2, 4.4, 1.15
"""Live activations of a step at their peak, in hidden widths per token: in attention, and in the feed-forward layer
beside its own two widths."""


MODULATIONS = 7
"""The modulations of a frame and the embedding of its time, in hidden widths."""

REMEMBERED = 4
"""Latents in fp32: those of the step, and the last sample and two outputs that the solver remembers."""


class WanConditions(NamedTuple):
    """What the transformer reads besides the latents, on its device."""

    text: torch.Tensor
    """[branches, tokens, features]."""
    image_features: torch.Tensor | None
    """[branches, tokens, features] of the image encoder; None where there is none."""
    reference: Condition
    times: torch.Tensor
    """[steps], on the host."""
    rope: Rope


class WanDenoiser(Denoiser[WanConditions]):
    """Wan's transformer with its schedule: the only one, or the one of the first steps."""

    names = TRANSFORMER
    module: WanTransformer
    spec: WanSpec

    def __init__(self, checkpoint: Path, dtype: torch.dtype, spec: WanSpec) -> None:
        super().__init__(dtype, spec)
        self.shape = read_shape(checkpoint, self.folder)
        self.schedule = Schedule(checkpoint, spec)
        self._image_tokens = self.spec.image_encoder.tokens if self.spec.image_encoder else 0
        self._stride = read_configuration(checkpoint, VAE).get("scale_factor_spatial", 8)
        self.module = on_meta(lambda: WanTransformer(self.shape), torch.float32)
        precise = frozenset(name for name in self.module.state_dict() if any(part in name for part in PRECISE))
        for name, parameter in self.module.named_parameters():
            parameter.data = parameter if name in precise else parameter.to(dtype)
        blocks = tuple(f"blocks.{index}" for index in range(self.shape.num_layers))
        self.weights = WeightMap((self.folder,), blocks, precise=precise)

    def steps_elsewhere(self, request: GenerateRequest) -> tuple[int, int]:
        return 0, request.steps - self.schedule.high(request.steps, request.shift)

    def num_steps(self, request: GenerateRequest) -> int:
        return request.steps - sum(self.steps_elsewhere(request))

    def activation_bytes(self, request: GenerateRequest) -> int:
        """Bytes of activations, linear in the tokens of both branches of a guided step, and of the solver's memory in
        fp32."""
        tokens, branches, width = self._tokens(request), self.branches(request), self.shape.width
        widths = max(ATTENTION_WIDTHS, OUTER_WIDTHS + 2 * self.shape.ffn_dim / width)
        per_token = int(MARGIN * widths * width) * self.dtype.itemsize
        rope = self.shape.attention_head_dim * torch.float32.itemsize
        channels = 6 * self.shape.out_channels + 2 * self.shape.in_channels
        solver = channels * math.prod(self._grid(request)) * torch.float32.itemsize
        text = MAX_TOKENS * (self.shape.text_dim + 6 * width)
        features = self._image_tokens * ((self.shape.image_dim or 0) + 6 * width)
        context = branches * (text + features) * self.dtype.itemsize
        return tokens * (branches * per_token + rope) + solver + context

    def held_bytes(self, request: GenerateRequest) -> int:
        """The states and angles of all tokens, text and picture as they came and in the width of the transformer, the
        modulations of each frame, and in fp32 the latents, what the solver remembers, and the picture's channels."""
        tokens, branches, shape, grid = self._tokens(request), self.branches(request), self.shape, self._grid(request)
        text, seen = shape.text_dim + shape.width, (shape.image_dim or 0) + shape.width
        values = branches * (tokens * shape.width + MAX_TOKENS * text + self._image_tokens * seen)
        values += MODULATIONS * grid[0] * shape.width + math.prod(grid) * shape.in_channels
        remembered = (REMEMBERED * shape.out_channels + shape.in_channels) * math.prod(grid)
        return values * self.dtype.itemsize + (remembered + tokens * shape.attention_head_dim) * torch.float32.itemsize

    def operations(self, request: GenerateRequest) -> float:
        """Two operations for each weight and token, and four for each pair of tokens and each width in attention. The
        tokens of text and picture meet two matrices of every block."""
        tokens, width, context = self._tokens(request), self.shape.width, MAX_TOKENS + self._image_tokens
        square, attention = 2 * width * width, 4 * width * (tokens + context)
        per_token = 6 * square + 4 * width * self.shape.ffn_dim + attention
        block = tokens * per_token + 2 * context * square
        return float(self.branches(request) * len(self.blocks) * block)

    def start(
        self, request: GenerateRequest, conditioning: Conditioning, references: Sequence[Latents], device: torch.device
    ) -> SamplingState[WanConditions]:
        stepper = self.schedule.stepper(request.steps, request.shift)
        conditions = self.conditions(request, conditioning, references, stepper, device)
        drawn = noise((1, self.shape.out_channels, *self._grid(request)), request.seed)
        return self.state(request, conditions, stepper, drawn.to(device))

    def predict(self, state: SamplingState[WanConditions]) -> Visits[torch.Tensor]:
        text, features, reference, times, rope = state.conditions
        shown = reference.show(state.latents).to(self.dtype).expand(len(text), -1, -1, -1, -1)
        timestep = reference.times(times[state.step]).to(shown.device, torch.float32)
        velocity: torch.Tensor = yield from self.module(shown, text, timestep, rope, features)
        return velocity

    def latents(self, state: SamplingState[WanConditions]) -> Latents:
        kept = state.conditions.reference.keep(state.latents)
        return replace(to_latents(kept[0]), history=state.stepper.history())

    def conditions(
        self,
        request: GenerateRequest,
        conditioning: Conditioning,
        references: Sequence[Latents],
        stepper: UniPC,
        device: torch.device,
    ) -> WanConditions:
        """The conditions of all steps."""
        text = torch.stack([_pad(branch) for branch in conditioning.branches]).to(device, self.dtype)
        features = conditioning.image_features
        if features is not None:
            features = features.to(device, self.dtype).expand(len(text), -1, -1)
        reference = self.condition(request, references, device)
        return WanConditions(text, features, reference, stepper.timesteps, self._rope(request).to(device))

    def _grid(self, request: GenerateRequest) -> tuple[int, int, int]:
        """Frames, rows and columns of the latents."""
        frames = (request.frames - 1) // self.spec.video.multiple + 1
        return frames, request.size.height // self._stride, request.size.width // self._stride

    def _patches(self, request: GenerateRequest) -> tuple[int, ...]:
        """Frames, rows and columns of the patches."""
        return tuple(side // patch for side, patch in zip(self._grid(request), self.shape.patch_size, strict=True))

    def _tokens(self, request: GenerateRequest) -> int:
        return math.prod(self._patches(request))

    def condition(self, request: GenerateRequest, references: Sequence[Latents], device: torch.device) -> Condition:
        if not references:
            return Condition()
        given = to_grid(references[0])[None].to(device)
        if self.spec.expand_timesteps:
            return FirstFrame(given, self._grid(request)[0])
        return PictureChannels(given, self.spec.video.multiple)

    def _rope(self, request: GenerateRequest) -> Rope:
        ids = torch.cartesian_prod(*(torch.arange(side) for side in self._patches(request)))
        return rope_table(ids, self.shape.axes, ROPE_THETA)


def _pad(text: torch.Tensor) -> torch.Tensor:
    """Text features padded with zeros to MAX_TOKENS. The transformer looks at the zeros too."""
    return F.pad(text, (0, 0, 0, MAX_TOKENS - len(text)))
