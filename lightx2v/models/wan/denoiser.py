"""Wan's denoising: noise to the latents of a video, along the schedule, guided by text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler as Solver

from lightx2v.core import Conditioning, GenerateRequest, Latents
from lightx2v.layers.rope import Rope, rope_table
from lightx2v.models.component import Denoiser
from lightx2v.models.configuration import read_configuration
from lightx2v.models.flow import guide
from lightx2v.models.wan.condition import Beside, Condition, FirstFrame
from lightx2v.models.wan.latents import to_grid, to_latents
from lightx2v.models.wan.recipe import MAX_TOKENS, WanRecipe, read_recipe
from lightx2v.models.wan.schedule import Schedule, remember
from lightx2v.models.wan.transformer import WanTransformer, read_shape
from lightx2v.models.wan.variant import VAE

ROPE_THETA = 10000.0

PRECISE = ("condition_embedder.time_embedder.", "scale_shift_table", "norm1.", "norm2.")
"""Parts of the names of states that stay in fp32, as in the reference."""

ATTENTION_WIDTHS, OUTER_WIDTHS, MARGIN = 11.2, 4.4, 1.15
"""Live activations of a step at their peak, in hidden widths per token: in attention, and in the feed-forward layer
beside its own two."""

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class WanDenoiser(Denoiser):
    module: WanTransformer
    recipe: WanRecipe

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.shape = read_shape(checkpoint, self.folder)
        self.recipe = read_recipe(checkpoint)
        self.schedule = Schedule(checkpoint)
        self._seen = self.recipe.sight.tokens if self.recipe.sight else 0
        self._stride = read_configuration(checkpoint, VAE).get("scale_factor_spatial", 8)
        with torch.device("meta"):
            self.module = WanTransformer(self.shape).eval().requires_grad_(False)
        self.precise = frozenset(name for name in self.module.state_dict() if any(part in name for part in PRECISE))
        for name, parameter in self.module.named_parameters():
            parameter.data = parameter if name in self.precise else parameter.to(dtype)
        self.blocks = tuple(f"blocks.{index}" for index in range(self.shape.num_layers))

    def others(self, request: GenerateRequest) -> tuple[int, int]:
        return 0, request.steps - self.schedule.high(request.steps)

    def count(self, request: GenerateRequest) -> int:
        return request.steps - sum(self.others(request))

    def guidance(self, request: GenerateRequest) -> float:
        """The scale in this transformer's steps."""
        return request.guidance

    def workspace(self, request: GenerateRequest) -> int:
        """Activations are linear in the tokens of both branches of a guided step; the solver's memory in fp32."""
        tokens, branches, width = self._tokens(request), self.branches(request), self.shape.width
        widths = max(ATTENTION_WIDTHS, OUTER_WIDTHS + 2 * self.shape.ffn_dim / width)
        per_token = int(MARGIN * widths * width) * self.dtype.itemsize
        rope = self.shape.attention_head_dim * torch.float32.itemsize
        channels = 6 * self.shape.out_channels + 2 * self.shape.in_channels
        solver = channels * math.prod(self._grid(request)) * torch.float32.itemsize
        text = MAX_TOKENS * (self.shape.text_dim + 6 * width)
        seen = self._seen * ((self.shape.image_dim or 0) + 6 * width)
        context = branches * (text + seen) * self.dtype.itemsize
        return tokens * (branches * per_token + rope) + solver + context

    def flops(self, request: GenerateRequest) -> float:
        """Two for each weight and token, and four for each pair of tokens and each width in attention. The text's
        tokens and the picture's meet two matrices of every block."""
        tokens, width, context = self._tokens(request), self.shape.width, MAX_TOKENS + self._seen
        square, attention = 2 * width * width, 4 * width * (tokens + context)
        per_token = 6 * square + 4 * width * self.shape.ffn_dim + attention
        block = tokens * per_token + 2 * context * square
        return float(self.branches(request) * len(self.blocks) * block)

    def steps(
        self, request: GenerateRequest, conditioning: Conditioning, references: Sequence[Latents], device: torch.device
    ) -> Iterator[Latents]:
        condition = self.condition(request, references, device)
        solver = self.schedule.solver(request.steps)
        return self.walk(request, conditioning, condition, solver, self._noise(request).to(device))

    @torch.no_grad()
    def walk(
        self,
        request: GenerateRequest,
        conditioning: Conditioning,
        condition: Condition,
        solver: Solver,
        latents: torch.Tensor,
    ) -> Iterator[Latents]:
        """This transformer's steps. `latents`: [1, channels, frames, rows, columns], fp32, where it computes."""
        velocity = self._velocity(request, conditioning, condition, latents.device)
        before, _ = self.others(request)
        for timestep in solver.timesteps[before : before + self.count(request)]:
            moved = solver.step(velocity(latents, timestep), timestep, latents, return_dict=False)
            latents = moved[0]
            yield replace(to_latents(condition.keep(latents)[0]), history=remember(solver))

    def _grid(self, request: GenerateRequest) -> tuple[int, int, int]:
        """Frames, rows and columns of the latents."""
        frames = (request.frames - 1) // self.recipe.clip.multiple + 1
        return frames, request.size.height // self._stride, request.size.width // self._stride

    def _patches(self, request: GenerateRequest) -> tuple[int, ...]:
        """Frames, rows and columns of the patches."""
        return tuple(side // patch for side, patch in zip(self._grid(request), self.shape.patch_size, strict=True))

    def _tokens(self, request: GenerateRequest) -> int:
        return math.prod(self._patches(request))

    def _noise(self, request: GenerateRequest) -> torch.Tensor:
        """[1, channels, frames, rows, columns], fp32, drawn on the host, so that a seed means the same video on every
        device."""
        generator = torch.Generator("cpu").manual_seed(request.seed)
        return torch.randn((1, self.shape.out_channels, *self._grid(request)), generator=generator)

    def condition(self, request: GenerateRequest, references: Sequence[Latents], device: torch.device) -> Condition:
        if not references:
            return Condition()
        given = to_grid(references[0])[None].to(device)
        if self.recipe.expand_timesteps:
            return FirstFrame(given, self._grid(request)[0])
        return Beside(given, self.recipe.clip.multiple)

    def _velocity(
        self, request: GenerateRequest, conditioning: Conditioning, condition: Condition, device: torch.device
    ) -> Velocity:
        """The guided velocity. What depends on the request alone is computed here, once.

        Both branches of guidance pass a block together, so a streamed block crosses the link once per step.
        """
        branches = [_pad(text) for text in (conditioning.positive, conditioning.negative) if text is not None]
        text = torch.stack(branches).to(device, self.dtype)
        seen = None if conditioning.seen is None else conditioning.seen.to(device, self.dtype).expand(len(text), -1, -1)
        rope, scale = self._rope(request).to(device), self.guidance(request)

        def guided(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            shown = condition.show(latents).to(self.dtype).expand(len(text), -1, -1, -1, -1)
            velocity = self.module(shown, text, condition.times(timestep).to(device, torch.float32), rope, seen)
            if len(text) == 1:
                return velocity
            towards, away = velocity.split(1)
            return guide(towards, away, scale)

        return guided

    def _rope(self, request: GenerateRequest) -> Rope:
        ids = torch.cartesian_prod(*(torch.arange(side) for side in self._patches(request)))
        return rope_table(ids, self.shape.axes, ROPE_THETA)


def _pad(text: torch.Tensor) -> torch.Tensor:
    """[tokens, features] to MAX_TOKENS of them; the transformer looks at the zeros too."""
    return F.pad(text, (0, 0, 0, MAX_TOKENS - len(text)))
