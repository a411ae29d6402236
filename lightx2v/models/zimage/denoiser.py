"""Z-Image's denoising: noise, or a picture and noise, to latents, along the schedule, guided by captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from lightx2v.core import Conditioning, GenerateRequest, Latents
from lightx2v.layers.rope import Rope, rope_table
from lightx2v.models.component import Denoiser
from lightx2v.models.flow import euler_step
from lightx2v.models.zimage.recipe import MAX_TOKENS, ZImageRecipe, read_recipe
from lightx2v.models.zimage.schedule import first_step, noise_levels, times
from lightx2v.models.zimage.tokens import to_tokens
from lightx2v.models.zimage.transformer import PATCH, Places, Sequences, ZImageTransformer, padding, read_shape

WIDTHS_PER_TOKEN = 13
"""Live activations of a step at their peak, in hidden widths per token: 11.3, and a seventh to spare."""

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class ZImageDenoiser(Denoiser):
    module: ZImageTransformer
    recipe: ZImageRecipe

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.shape = read_shape(checkpoint)
        self.recipe = read_recipe(checkpoint)
        with torch.device("meta"):
            self.module = ZImageTransformer(self.shape).to(dtype).eval().requires_grad_(False)
        refiners, layers = range(self.shape.n_refiner_layers), range(self.shape.n_layers)
        noise, context = ([f"{part}_refiner.{index}" for index in refiners] for part in ("noise", "context"))
        self.blocks = (*noise, *context, *(f"layers.{index}" for index in layers))

    def count(self, request: GenerateRequest) -> int:
        return request.steps - self._first(request)

    def workspace(self, request: GenerateRequest) -> int:
        """Activations are linear in the tokens of captions and images, of both branches of a guided step."""
        per_token = WIDTHS_PER_TOKEN * self.shape.dim * self.dtype.itemsize
        rope = 2 * self.shape.head_dim * torch.float32.itemsize
        conditioning = 2 * MAX_TOKENS * self.shape.cap_feat_dim * self.dtype.itemsize
        return self.branches(request) * sum(self._tokens(request)) * (per_token + rope) + conditioning

    def flops(self, request: GenerateRequest) -> float:
        """Two for each weight and token; four for each pair of tokens and each width in attention."""
        image, caption = self._tokens(request)
        refined = self._flops(self.module.noise_refiner, image) + self._flops(self.module.context_refiner, caption)
        return float(self.branches(request) * (refined + self._flops(self.module.layers, image + caption)))

    @torch.no_grad()
    def steps(
        self, request: GenerateRequest, conditioning: Conditioning, references: Sequence[Latents], device: torch.device
    ) -> Iterator[Latents]:
        """In fp32 between the transformer's calls, as the reference steps."""
        rows, columns = self.grid(request.size)
        velocity = self._velocity(request, conditioning, device)
        first = self._first(request)
        levels = noise_levels(request.steps, self.recipe.shift)
        embedded = times(levels).to(device)
        tokens = self._start(request, references, levels[first]).to(device)
        for step in range(first, request.steps):
            level, following = levels[step : step + 2].tolist()
            tokens = euler_step(tokens, velocity(tokens, embedded[step : step + 1]), level, following)
            yield Latents(tokens, rows, columns)

    def _first(self, request: GenerateRequest) -> int:
        return first_step(request.steps, request.strength) if request.references else 0

    def _tokens(self, request: GenerateRequest) -> tuple[int, int]:
        """Of the image and of the longest caption, both padded."""
        image = math.prod(self.grid(request.size))
        return image + padding(image), MAX_TOKENS

    def _flops(self, blocks: nn.Module, tokens: int) -> int:
        """Of one branch in all of `blocks`; modulations, of one token each, come to nothing."""
        weights = 4 * self.shape.dim**2 + 3 * self.shape.dim * self.shape.hidden
        return len(list(blocks.children())) * tokens * (2 * weights + 4 * tokens * self.shape.dim)

    def _start(self, request: GenerateRequest, references: Sequence[Latents], level: torch.Tensor) -> torch.Tensor:
        """[tokens, token], drawn on the host, so that a seed means the same picture on every device. The reference
        pipeline first draws the picture from its posterior, which the autoencoder did."""
        generator = torch.Generator("cpu").manual_seed(request.seed)
        shape = (1, self.shape.in_channels, *(PATCH * side for side in self.grid(request.size)))
        for _ in references:
            torch.randn(shape, generator=generator, dtype=torch.float32)
        noise = to_tokens(torch.randn(shape, generator=generator, dtype=torch.float32), PATCH)[0]
        for picture in references:
            return level * noise + (1.0 - level) * picture.tokens.float().cpu()
        return noise

    def _velocity(self, request: GenerateRequest, conditioning: Conditioning, device: torch.device) -> Velocity:
        """The guided velocity. What depends on the request alone is computed here, once.

        Both branches of guidance pass a block together, so a streamed block crosses the link once per step.
        """
        branches = [text for text in (conditioning.positive, conditioning.negative) if text is not None]
        captions = [text.to(device, self.dtype) for text in branches]
        places = self._places(self.grid(request.size), [len(text) for text in branches], device)

        def guided(tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            towards, *away = self.module(tokens.to(self.dtype), captions, time, places).float()
            return -sum((request.guidance * (towards - other) for other in away), start=towards)

        return guided

    def _places(self, grid: tuple[int, int], captions: Sequence[int], device: torch.device) -> Places:
        texts = [_caption_ids(tokens) for tokens in captions]
        images = [_image_ids(len(text) + 1, *grid) for text in texts]
        joint = [torch.cat(branch) for branch in zip(images, texts, strict=True)]
        return Places(*(self._sequences(parts, device) for parts in (images, texts, joint)))

    def _sequences(self, ids: Sequence[torch.Tensor], device: torch.device) -> Sequences:
        rope: Rope = rope_table(torch.cat(list(ids)), self.shape.axes_dims, self.shape.rope_theta)
        return Sequences(rope.to(device), tuple(map(len, ids)))


def _caption_ids(tokens: int) -> torch.Tensor:
    """[padded, 3]: along the first rotary axis from 1 on, padding too."""
    ids = torch.zeros(tokens + padding(tokens), 3, dtype=torch.long)
    ids[:, 0] = torch.arange(1, len(ids) + 1)
    return ids


def _image_ids(first: int, rows: int, columns: int) -> torch.Tensor:
    """[padded, 3]: behind the caption, then row and column; padding at the origin."""
    ids = torch.cartesian_prod(torch.tensor([first]), torch.arange(rows), torch.arange(columns))
    return torch.cat((ids, torch.zeros(padding(len(ids)), 3, dtype=torch.long)))
