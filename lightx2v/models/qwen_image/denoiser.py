"""Qwen-Image's denoising: noise to latents, along the schedule, guided by text and reference pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from lightx2v.layers.rope import rope_table
from lightx2v.models.component import Denoiser, on_meta
from lightx2v.models.flow import guide, noise
from lightx2v.models.qwen_image.schedule import read_schedule, timesteps
from lightx2v.models.qwen_image.spec import MAX_EDIT_TOKENS, MAX_TOKENS, PATCH, SEEN_TOKENS
from lightx2v.models.qwen_image.transformer import QwenImageTransformer, Ropes, read_shape
from lightx2v.models.sampler import SamplingState
from lightx2v.models.spec import ModelSpec
from lightx2v.models.visits import Visits
from lightx2v.types import ChosenLora, Conditioning, GenerateRequest, Latents
from lightx2v.weights.layout import WeightMap

ROPE_THETA = 10000.0

SCHEDULES = 4
"""How many schedules' modulations are kept on the host: 4.4 MB per step in bf16. Making those of one schedule moves
13.6 GB over the link."""

ZERO_COND_T = "__index_timestep_zero__"
"""An empty tensor in ComfyUI's files of 2511, which says what `zero_cond_t` says. Another model must not take such a
file."""

WIDTHS_PER_TOKEN = 15
"""Live activations of a step at their peak, in hidden widths per token: 12.6 to 13 were counted, and a sixth is to
spare."""


class QwenImageConditions(NamedTuple):
    """What the transformer reads besides the target's tokens: `modulations` on the host, all else on its device."""

    text: torch.Tensor
    """[1, tokens, features]: the branches' prompts, one after the other."""
    lengths: tuple[int, ...]
    """Tokens of each branch's prompt."""
    reference_tokens: tuple[torch.Tensor, ...]
    """[1, tokens, channels] each."""
    times: torch.Tensor
    """[steps]."""
    modulations: torch.Tensor
    """[steps, ...], and one more row for references that are modulated as of time 0."""
    ropes: Ropes


class QwenImageDenoiser(Denoiser[QwenImageConditions]):
    """Qwen-Image's transformer with its schedule. Modulations are computed once for a schedule and kept on the host."""

    module: QwenImageTransformer

    def __init__(self, checkpoint: Path, dtype: torch.dtype, spec: ModelSpec) -> None:
        super().__init__(dtype, spec)
        self.shape = read_shape(checkpoint)
        self.schedule = read_schedule(checkpoint)
        self.module = on_meta(lambda: QwenImageTransformer(self.shape), dtype)
        blocks = tuple(f"transformer_blocks.{index}" for index in range(self.shape.num_layers))
        on_host = frozenset(f"modulations.{name}" for name in self.module.modulations.state_dict())
        unread = (ZERO_COND_T,) if self.shape.zero_cond_t else ()
        self.weights = WeightMap((self.folder,), blocks, host_tensors=on_host, source=_source, unread=unread)
        self._modulation = lru_cache(maxsize=SCHEDULES)(self._tabulate)

    def activation_bytes(self, request: GenerateRequest) -> int:
        """Activations are linear in the tokens of text and images, of both branches of a guided step. Before the first
        step, a layer of the modulation and its bias."""
        width, itemsize = self.shape.width, self.dtype.itemsize
        layer = 6 * width * (width + 1 + 4 * request.steps) * itemsize
        table = self._table_bytes
        rope = self.shape.attention_head_dim * torch.float32.itemsize
        conditioning = 2 * self._text_tokens(request) * self.shape.joint_attention_dim * itemsize
        tokens = self._tokens(request) * (WIDTHS_PER_TOKEN * width * itemsize + rope)
        return max(self.branches(request) * (tokens + conditioning) + table, layer)

    def held_bytes(self, request: GenerateRequest) -> int:
        """The states of all tokens of both branches, the prompts, the angles, the modulations of a step, and the
        channels of all images twice: as latents and references, and side by side."""
        branches, shape, text = self.branches(request), self.shape, self._text_tokens(request)
        images = self._tokens(request) - text
        values = branches * ((text + images) * shape.width + text * shape.joint_attention_dim)
        angles = (branches * text + images) * shape.attention_head_dim * torch.float32.itemsize
        return (values + 2 * images * shape.in_channels) * self.dtype.itemsize + angles + self._table_bytes

    @property
    def _table_bytes(self) -> int:
        """Device bytes of the modulations of one step."""
        streams = 3 if self.shape.zero_cond_t else 2
        return streams * self.shape.num_layers * 6 * self.shape.width * self.dtype.itemsize

    def operations(self, request: GenerateRequest) -> float:
        """Two operations for each weight and token, which meets only its own stream's half of a block's weights. Four
        for each pair of tokens and each width in attention."""
        tokens = self._tokens(request)
        weights = sum(parameter.numel() for parameter in self.module.transformer_blocks.parameters())
        attention = 4 * tokens * self.shape.width * len(self.blocks)
        return float(self.branches(request) * tokens * (weights + attention))

    def start(
        self, request: GenerateRequest, conditioning: Conditioning, references: Sequence[Latents], device: torch.device
    ) -> SamplingState[QwenImageConditions]:
        rows, columns = self.grid(request.size)
        levels = self.schedule.levels(rows * columns, request.steps, request.shift)
        adapted = tuple(lora for lora in request.loras if lora.name in self.host_loras)
        lengths = tuple(map(len, conditioning.branches))
        grids = [(rows, columns), *((reference.rows, reference.columns) for reference in references)]
        conditions = QwenImageConditions(
            torch.cat(conditioning.branches)[None].to(device, self.dtype),
            lengths,
            tuple(reference.tokens.to(device, self.dtype)[None] for reference in references),
            timesteps(levels, self.dtype).to(device),
            self._modulation(rows * columns, request.steps, request.shift, adapted, device),
            self._ropes(grids, lengths).to(device),
        )
        return self.start_euler(request, conditions, levels, self._noise(request), references, device)

    def predict(self, state: SamplingState[QwenImageConditions]) -> Visits[torch.Tensor]:
        text, lengths, references, times, modulations, ropes = state.conditions
        image = torch.cat((state.latents, *references), dim=1).expand(len(lengths), -1, -1)
        modulation, time = self._streams(modulations, state.step).to(image.device), times[state.step : state.step + 1]
        velocity: torch.Tensor = yield from self.module(
            image, text, state.latents.shape[1], lengths, time, modulation, ropes
        )
        return velocity

    def guide(self, towards: torch.Tensor, away: torch.Tensor, guidance: float) -> torch.Tensor:
        """The guided velocity, each token scaled to the norm of its unguided one."""
        guided = guide(towards, away, guidance)
        return guided * (towards.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def _tabulate(
        self, tokens: int, steps: int, shift: float | None, _: tuple[ChosenLora, ...], device: torch.device
    ) -> torch.Tensor:
        """The modulations of each step and, if references are modulated as of time 0, one more row for them. They
        depend on the LoRAs of the modulation, which are active meanwhile."""
        times = timesteps(self.schedule.levels(tokens, steps, shift), self.dtype)
        if self.shape.zero_cond_t:
            times = torch.cat((times, times.new_zeros(1)))
        return self.module.tabulate(times.to(device))

    def _streams(self, table: torch.Tensor, step: int) -> torch.Tensor:
        """[blocks, streams, ...]: the modulations of image, of text and, if they differ from the image's, of
        references."""
        return torch.cat((table[step], table[-1, :, :1]), dim=1) if self.shape.zero_cond_t else table[step]

    def _tokens(self, request: GenerateRequest) -> int:
        """Tokens of text, target and references, at most."""
        images = sum(math.prod(self.grid(size)) for size in (request.size, *request.references))
        return self._text_tokens(request) + images

    def _text_tokens(self, request: GenerateRequest) -> int:
        """Tokens of a prompt and of the pictures that the text encoder sees, at most."""
        said = MAX_EDIT_TOKENS if request.references else MAX_TOKENS
        return said + SEEN_TOKENS * len(request.references)

    def _noise(self, request: GenerateRequest) -> torch.Tensor:
        """[1, tokens, channels], on the host."""
        rows, columns = self.grid(request.size)
        drawn = noise((1, self.shape.in_channels // PATCH**2, PATCH * rows, PATCH * columns), request.seed)
        return torch.nn.functional.pixel_unshuffle(drawn, PATCH).flatten(2).transpose(1, 2).to(self.dtype)

    def _ropes(self, grids: Sequence[tuple[int, int]], lengths: Sequence[int]) -> Ropes:
        """The rotary tables of the target's and the references' `grids`. Rows and columns are counted from the centre.
        The tokens of a prompt follow on the diagonal, from the outermost rim on."""
        ids = torch.cat([_ids(index, *grid) for index, grid in enumerate(grids)])
        first = max(side // 2 for grid in grids for side in grid)
        diagonal = torch.cat([torch.arange(first, first + length) for length in lengths])[:, None].expand(-1, 3)
        axes = self.shape.axes_dims_rope
        image, text = (rope_table(table, axes, ROPE_THETA, torch.float32) for table in (ids, diagonal))
        return Ropes(image, text)


def _source(name: str) -> str:
    """The checkpoint's name of a state: modulations are a part of their blocks there."""
    return re.sub(r"^modulations\.(\d+)\.(img|txt)_mod\.", r"transformer_blocks.\1.\2_mod.1.", name)


def _ids(index: int, rows: int, columns: int) -> torch.Tensor:
    """[rows * columns, 3]: the positions of one image's tokens."""
    return torch.cartesian_prod(torch.tensor([index]), _centred(rows), _centred(columns))


def _centred(count: int) -> torch.Tensor:
    return torch.arange(count) - (count - count // 2)
