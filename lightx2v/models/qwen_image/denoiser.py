"""Qwen-Image's denoising: noise to latents, along the schedule, guided by text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from lightx2v.core import Conditioning, GenerateRequest, Latents
from lightx2v.layers.rope import rope_table
from lightx2v.models.component import Denoiser
from lightx2v.models.flow import euler_step, guide
from lightx2v.models.qwen_image.recipe import MAX_TOKENS, PATCH, read_recipe
from lightx2v.models.qwen_image.schedule import read_schedule, timesteps
from lightx2v.models.qwen_image.transformer import QwenImageTransformer, Ropes, read_shape

ROPE_THETA = 10000.0

SCHEDULES = 4
"""So many schedules' modulations are kept on the host, 4.4 MB per step in bf16. To make those of one takes the time in
which 13.6 GB cross the link."""

WIDTHS_PER_TOKEN = 15
"""Live activations of a step at their peak, in hidden widths per token: 12.6 to 13, and a sixth to spare."""

Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class QwenImageDenoiser(Denoiser):
    module: QwenImageTransformer

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.shape = read_shape(checkpoint)
        self.recipe = read_recipe(checkpoint)
        self.schedule = read_schedule(checkpoint)
        with torch.device("meta"):
            self.module = QwenImageTransformer(self.shape).to(dtype).eval().requires_grad_(False)
        self.blocks = tuple(f"transformer_blocks.{index}" for index in range(self.shape.num_layers))
        self.host_tensors = frozenset(f"modulations.{name}" for name in self.module.modulations.state_dict())
        self._modulation = lru_cache(maxsize=SCHEDULES)(self._tabulate)

    def source(self, name: str) -> str:
        return re.sub(r"^modulations\.(\d+)\.(img|txt)_mod\.", r"transformer_blocks.\1.\2_mod.1.", name)

    def workspace(self, request: GenerateRequest) -> int:
        """Activations are linear in the tokens of text and image, of both branches of a guided step. Before the first
        step, a layer of the modulation and its bias."""
        width, itemsize = self.shape.width, self.dtype.itemsize
        layer = 6 * width * (width + 1 + 4 * request.steps) * itemsize
        table = 2 * self.shape.num_layers * 6 * width * itemsize
        rope = self.shape.attention_head_dim * torch.float32.itemsize
        conditioning = 2 * MAX_TOKENS * self.shape.joint_attention_dim * itemsize
        tokens = self._tokens(request) * (WIDTHS_PER_TOKEN * width * itemsize + rope)
        return max(self.branches(request) * (tokens + conditioning) + table, layer)

    def flops(self, request: GenerateRequest) -> float:
        """Two for each weight and token, which meets the half of a block's weights that is its own stream's. Four for
        each pair of tokens and each width in attention."""
        tokens = self._tokens(request)
        weights = sum(parameter.numel() for parameter in self.module.transformer_blocks.parameters())
        attention = 4 * tokens * self.shape.width * len(self.blocks)
        return float(self.branches(request) * tokens * (weights + attention))

    @torch.no_grad()
    def steps(
        self, request: GenerateRequest, conditioning: Conditioning, references: Sequence[Latents], device: torch.device
    ) -> Iterator[Latents]:
        rows, columns = self.grid(request.size)
        levels = self.schedule.levels(rows * columns, request.steps)
        times = timesteps(levels, self.dtype).to(device)
        modulations = self._modulation(rows * columns, request.steps, device)
        velocity = self._velocity(request, conditioning, device)
        tokens = self._noise(request, rows, columns).to(device)
        for step, (level, following) in enumerate(zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True)):
            predicted = velocity(tokens, times[step : step + 1], modulations[step].to(device))
            tokens = euler_step(tokens, predicted, level, following)
            yield Latents(tokens[0], rows, columns)

    def _tabulate(self, tokens: int, steps: int, device: torch.device) -> torch.Tensor:
        return self.module.tabulate(timesteps(self.schedule.levels(tokens, steps), self.dtype).to(device))

    def _tokens(self, request: GenerateRequest) -> int:
        """Of text and target, at most."""
        rows, columns = self.grid(request.size)
        return MAX_TOKENS + rows * columns

    def _noise(self, request: GenerateRequest, rows: int, columns: int) -> torch.Tensor:
        """[1, tokens, channels], drawn on the host, so that a seed means the same picture on every device."""
        generator = torch.Generator("cpu").manual_seed(request.seed)
        shape = (1, self.shape.in_channels // PATCH**2, PATCH * rows, PATCH * columns)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        return torch.nn.functional.pixel_unshuffle(noise, PATCH).flatten(2).transpose(1, 2).to(self.dtype)

    def _velocity(self, request: GenerateRequest, conditioning: Conditioning, device: torch.device) -> Velocity:
        """The guided velocity of the target's tokens. What depends on the request alone is computed here, once.

        Both branches of guidance pass a block together, so a streamed block crosses the link once per step.
        """
        branches = [text for text in (conditioning.positive, conditioning.negative) if text is not None]
        lengths = tuple(len(text) for text in branches)
        text = torch.cat(branches)[None].to(device, self.dtype)
        ropes = self._ropes(*self.grid(request.size), lengths).to(device)

        def guided(tokens: torch.Tensor, time: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
            image = tokens.expand(len(lengths), -1, -1)
            velocity = self.module(image, text, lengths, time, modulation, ropes)
            if len(lengths) == 1:
                return velocity
            towards, away = velocity.split(1)
            return guide_with_norm(towards, away, request.guidance)

        return guided

    def _ropes(self, rows: int, columns: int, lengths: Sequence[int]) -> Ropes:
        """Rows and columns are counted from the centre; a prompt's tokens follow on the diagonal, from the rim on."""
        ids = torch.cartesian_prod(torch.arange(1), _centred(rows), _centred(columns))
        first = max(rows // 2, columns // 2)
        diagonal = torch.cat([torch.arange(first, first + length) for length in lengths])[:, None].expand(-1, 3)
        axes = self.shape.axes_dims_rope
        image, text = (rope_table(table, axes, ROPE_THETA, torch.float32) for table in (ids, diagonal))
        return Ropes(image, text)


def guide_with_norm(towards: torch.Tensor, away: torch.Tensor, guidance: float) -> torch.Tensor:
    """Guided, each token of the norm that it has without guidance."""
    guided = guide(towards, away, guidance)
    return guided * (towards.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))


def _centred(count: int) -> torch.Tensor:
    return torch.arange(count) - (count - count // 2)
