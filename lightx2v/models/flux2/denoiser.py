"""FLUX.2's denoising: noise to latents, along the schedule, guided by text and reference pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from lightx2v.layers.rope import Rope, rope_table
from lightx2v.models.component import Denoiser, on_meta
from lightx2v.models.flow import TRAIN_TIMESTEPS, noise
from lightx2v.models.flux2.names import TRANSFORMER
from lightx2v.models.flux2.schedule import noise_levels, timesteps
from lightx2v.models.flux2.spec import MAX_TOKENS
from lightx2v.models.flux2.transformer import Flux2Transformer, read_shape
from lightx2v.models.sampler import SamplingState
from lightx2v.models.spec import ModelSpec
from lightx2v.models.visits import Visits
from lightx2v.types import Conditioning, GenerateRequest, Latents
from lightx2v.weights.layout import WeightMap

REFERENCE_SPACING = 10
"""The first rotary axis of reference k is at 10 (k + 1); the target is at 0."""

WIDTHS_PER_TOKEN = 24
"""Live activations of a step at their peak, in hidden widths per token: 20.4 were counted, and a sixth is to spare."""

MODULATIONS = 16
"""The modulations of a step and the embedding of its time, in hidden widths."""

ROPES = 8
"""The latest rotary tables that are kept on the host. Each takes some 5 ms to compute, while the device waits."""


class Flux2Conditions(NamedTuple):
    """What the transformer reads besides the target's tokens, on its device."""

    text: torch.Tensor
    """[branches, tokens, features]."""
    reference_tokens: tuple[torch.Tensor, ...]
    """[1, tokens, channels] each."""
    times: torch.Tensor
    """[steps]."""
    guidance: torch.Tensor
    """[1], as guidance-distilled checkpoints embed it."""
    rope: Rope
    """The angles of text, target and references."""


class Flux2Denoiser(Denoiser[Flux2Conditions]):
    """FLUX.2's transformer with its schedule; references are further tokens beside the target's."""

    names = TRANSFORMER
    module: Flux2Transformer

    def __init__(self, checkpoint: Path, dtype: torch.dtype, spec: ModelSpec) -> None:
        super().__init__(dtype, spec)
        self.shape = read_shape(checkpoint)
        self.module = on_meta(lambda: Flux2Transformer(self.shape), dtype)
        double = (f"transformer_blocks.{index}" for index in range(self.shape.num_layers))
        single = (f"single_transformer_blocks.{index}" for index in range(self.shape.num_single_layers))
        self.weights = WeightMap((self.folder,), (*double, *single))
        per_stream, shared = map(_numel, (self.module.transformer_blocks, self.module.single_transformer_blocks))
        self._flops_per_token = per_stream + 2 * shared
        self._rope = lru_cache(maxsize=ROPES)(self._rope_of)

    def activation_bytes(self, request: GenerateRequest) -> int:
        """Activations are linear in the tokens of text, target and references, of both branches of a guided step."""
        per_token = WIDTHS_PER_TOKEN * self.shape.width * self.dtype.itemsize
        rope = self.shape.attention_head_dim * torch.float32.itemsize
        conditioning = 2 * MAX_TOKENS * self.shape.joint_attention_dim * self.dtype.itemsize
        return self._tokens(request) * (self.branches(request) * per_token + rope) + conditioning

    def held_bytes(self, request: GenerateRequest) -> int:
        """The states, angles and channels of all tokens, the prompts, and the modulations of all blocks. The channels
        are there twice: as latents and references, and side by side."""
        tokens, branches, shape = self._tokens(request), self.branches(request), self.shape
        values = tokens * (branches * shape.width + 2 * shape.in_channels)
        values += branches * MAX_TOKENS * shape.joint_attention_dim + MODULATIONS * shape.width
        return values * self.dtype.itemsize + tokens * shape.attention_head_dim * torch.float32.itemsize

    def operations(self, request: GenerateRequest) -> float:
        """Two operations for each weight and token; a token meets only its own stream's half of a double block's
        weights. Four for each pair of tokens and each width in attention."""
        tokens = self._tokens(request)
        attention = 4 * tokens * self.shape.width * len(self.blocks)
        return float(self.branches(request) * tokens * (self._flops_per_token + attention))

    def start(
        self, request: GenerateRequest, conditioning: Conditioning, references: Sequence[Latents], device: torch.device
    ) -> SamplingState[Flux2Conditions]:
        rows, columns = self.grid(request.size)
        levels = noise_levels(rows * columns, request.steps)
        grids = [(rows, columns), *((reference.rows, reference.columns) for reference in references)]
        conditions = Flux2Conditions(
            torch.stack([branch.to(device, self.dtype) for branch in conditioning.branches]),
            tuple(reference.tokens.to(device, self.dtype)[None] for reference in references),
            timesteps(levels, self.dtype).to(device),
            torch.tensor([request.guidance], device=device).to(self.dtype) * TRAIN_TIMESTEPS,
            self._rope(conditioning.positive.shape[0], tuple(grids)).to(device),
        )
        drawn = noise((1, self.shape.in_channels, rows, columns), request.seed)
        tokens = drawn.flatten(2).transpose(1, 2).to(self.dtype)
        return self.start_euler(request, conditions, levels, tokens, references, device)

    def predict(self, state: SamplingState[Flux2Conditions]) -> Visits[torch.Tensor]:
        text, references, times, guidance, rope = state.conditions
        image = torch.cat((state.latents, *references), dim=1).expand(len(text), -1, -1)
        velocity = yield from self.module(image, text, times[state.step : state.step + 1], rope, guidance)
        return velocity[:, : state.latents.shape[1]]

    def _tokens(self, request: GenerateRequest) -> int:
        """The number of tokens of text, target and references."""
        return MAX_TOKENS + sum(math.prod(self.grid(size)) for size in (request.size, *request.references))

    def _rope_of(self, text_tokens: int, grids: tuple[tuple[int, int], ...]) -> Rope:
        ids = [_ids(columns=1, rows=1, count=text_tokens)]
        ids += [_ids(index * REFERENCE_SPACING, rows, columns) for index, (rows, columns) in enumerate(grids)]
        return rope_table(torch.cat(ids), self.shape.axes_dims_rope, self.shape.rope_theta)


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _ids(time: int = 0, rows: int = 1, columns: int = 1, count: int = 1) -> torch.Tensor:
    """The positions of tokens on the four rotary axes: [rows * columns * count, 4]."""
    return torch.cartesian_prod(torch.tensor([time]), torch.arange(rows), torch.arange(columns), torch.arange(count))
