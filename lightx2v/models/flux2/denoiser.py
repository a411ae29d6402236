"""FLUX.2's denoising: noise to latents, along the schedule, guided by text and reference pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from lightx2v.core import Conditioning, GenerateRequest, Latents
from lightx2v.layers.rope import Rope, rope_table
from lightx2v.models.component import Denoiser
from lightx2v.models.flow import TRAIN_TIMESTEPS, euler_step, guide
from lightx2v.models.flux2.names import aliases
from lightx2v.models.flux2.recipe import MAX_TOKENS, read_recipe
from lightx2v.models.flux2.schedule import noise_levels, timesteps
from lightx2v.models.flux2.transformer import Flux2Transformer, read_shape

REFERENCE_SPACING = 10
"""The first rotary axis of reference k is at 10 (k + 1); the target is at 0."""

WIDTHS_PER_TOKEN = 25
"""Live activations of a step at their peak, in hidden widths per token: 21.4, and a sixth to spare."""

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Flux2Denoiser(Denoiser):
    module: Flux2Transformer

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.shape = read_shape(checkpoint)
        self.recipe = read_recipe(checkpoint)
        with torch.device("meta"):
            self.module = Flux2Transformer(self.shape).to(dtype).eval().requires_grad_(False)
        double = (f"transformer_blocks.{index}" for index in range(self.shape.num_layers))
        single = (f"single_transformer_blocks.{index}" for index in range(self.shape.num_single_layers))
        self.blocks = (*double, *single)
        self.aliases = aliases(self.shape.num_layers, self.shape.num_single_layers)
        per_stream, shared = map(_numel, (self.module.transformer_blocks, self.module.single_transformer_blocks))
        self._flops_per_token = per_stream + 2 * shared

    def workspace(self, request: GenerateRequest) -> int:
        """Activations are linear in the tokens of text, target and references, of both branches of a guided step."""
        per_token = WIDTHS_PER_TOKEN * self.shape.width * self.dtype.itemsize
        rope = self.shape.attention_head_dim * torch.float32.itemsize
        conditioning = 2 * MAX_TOKENS * self.shape.joint_attention_dim * self.dtype.itemsize
        return self._tokens(request) * (self.branches(request) * per_token + rope) + conditioning

    def flops(self, request: GenerateRequest) -> float:
        """Two for each weight and token; of a double block's weights a token meets the half of its own stream. Four for
        each pair of tokens and each width in attention."""
        tokens = self._tokens(request)
        attention = 4 * tokens * self.shape.width * len(self.blocks)
        return float(self.branches(request) * tokens * (self._flops_per_token + attention))

    @torch.no_grad()
    def steps(
        self, request: GenerateRequest, conditioning: Conditioning, references: Sequence[Latents], device: torch.device
    ) -> Iterator[Latents]:
        rows, columns = self.grid(request.size)
        velocity = self._velocity(request, conditioning, references, device)
        levels = noise_levels(rows * columns, request.steps)
        times = timesteps(levels, self.dtype).to(device)
        tokens = self._noise(request, rows, columns).to(device)
        for step, (level, following) in enumerate(zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True)):
            tokens = euler_step(tokens, velocity(tokens, times[step : step + 1]), level, following)
            yield Latents(tokens[0], rows, columns)

    def _tokens(self, request: GenerateRequest) -> int:
        """Of text, target and references."""
        return MAX_TOKENS + sum(math.prod(self.grid(size)) for size in (request.size, *request.references))

    def _noise(self, request: GenerateRequest, rows: int, columns: int) -> torch.Tensor:
        """[1, tokens, channels], drawn on the host, so that a seed means the same picture on every device."""
        generator = torch.Generator("cpu").manual_seed(request.seed)
        noise = torch.randn((1, self.shape.in_channels, rows, columns), generator=generator, dtype=torch.float32)
        return noise.flatten(2).transpose(1, 2).to(self.dtype)

    def _velocity(
        self, request: GenerateRequest, conditioning: Conditioning, references: Sequence[Latents], device: torch.device
    ) -> Velocity:
        """The guided velocity of the target's tokens. What depends on the request alone is computed here, once.

        Both branches of guidance pass a block together, so a streamed block crosses the link once per step.
        """
        target = math.prod(self.grid(request.size))
        grids = [self.grid(request.size), *((reference.rows, reference.columns) for reference in references)]
        rope = self._rope(conditioning.positive.shape[0], grids).to(device)
        seen = [reference.tokens.to(device, self.dtype)[None] for reference in references]
        branches = [text for text in (conditioning.positive, conditioning.negative) if text is not None]
        text = torch.stack(branches).to(device, self.dtype)
        guidance = torch.tensor([request.guidance], device=device).to(self.dtype) * TRAIN_TIMESTEPS

        def guided(tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            image = torch.cat((tokens, *seen), dim=1).expand(len(text), -1, -1)
            velocity = self.module(image, text, time, rope, guidance)[:, :target]
            if len(text) == 1:
                return velocity
            towards, away = velocity.split(1)
            return guide(towards, away, request.guidance)

        return guided

    def _rope(self, text_tokens: int, grids: Sequence[tuple[int, int]]) -> Rope:
        ids = [_ids(columns=1, rows=1, count=text_tokens)]
        ids += [_ids(index * REFERENCE_SPACING, rows, columns) for index, (rows, columns) in enumerate(grids)]
        return rope_table(torch.cat(ids), self.shape.axes_dims_rope, self.shape.rope_theta)


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _ids(time: int = 0, rows: int = 1, columns: int = 1, count: int = 1) -> torch.Tensor:
    """[time's one * rows * columns * count, 4]: the positions of tokens on the four rotary axes."""
    return torch.cartesian_prod(torch.tensor([time]), torch.arange(rows), torch.arange(columns), torch.arange(count))
