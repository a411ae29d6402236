"""Qwen-Image's transformer: double-stream blocks, text and image apart but for attention.

Names of modules are those of the checkpoints' tensors, but for `modulations`: what depends on the timestep only, a
third of all weights, lies outside of the blocks, so that it needs not follow them to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lightx2v.errors import InvalidCheckpoint
from lightx2v.layers.attention import attention
from lightx2v.layers.embedding import ScalarEmbedding, sinusoid
from lightx2v.layers.feedforward import GeluFeedForward
from lightx2v.layers.float16_range import within_half
from lightx2v.layers.joint import JointProjections
from lightx2v.layers.modulation import ModulatedNorm, Shift, modulated_norm
from lightx2v.layers.rope import Rope, rotate
from lightx2v.models.configuration import read_configuration, read_fields
from lightx2v.models.flow import TRAIN_TIMESTEPS
from lightx2v.models.visits import Pause, Visits

CONFIG = "transformer/config.json"
EPS = 1e-6
FEED_FORWARD = 4
TIME_CHANNELS = 256

UNSUPPORTED = ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope")
"""Switches of the configuration that each make it another model."""


@dataclass(frozen=True, slots=True)
class QwenImageShape:
    """`transformer/config.json`, but for what is the same in all checkpoints."""

    in_channels: int
    num_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    axes_dims_rope: tuple[int, ...]
    zero_cond_t: bool = False
    """Whether references are modulated as of time 0."""

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


def read_shape(checkpoint: Path) -> QwenImageShape:
    """The transformer's shape. Raises InvalidCheckpoint if the configuration is incomplete or of another model."""
    values = read_configuration(checkpoint, CONFIG)
    if extra := [name for name in UNSUPPORTED if values.get(name)]:
        raise InvalidCheckpoint(f"{checkpoint / CONFIG}: {extra[0]!r} is not supported")
    # Only the checkpoints that have zero_cond_t on name it.
    return read_fields(QwenImageShape, checkpoint, CONFIG, zero_cond_t=False)


class Ropes(NamedTuple):
    """The rotary tables of the image tokens and of the text tokens of all branches."""

    image: Rope
    text: Rope

    def to(self, device: torch.device) -> Ropes:
        return Ropes(self.image.to(device), self.text.to(device))


class QwenImageTransformer(nn.Module):
    """Double-stream blocks; the modulations of all blocks lie outside of them."""

    def __init__(self, shape: QwenImageShape) -> None:
        super().__init__()
        width = shape.width
        self.time_text_embed = TimeEmbedding(width)
        self.txt_norm = nn.RMSNorm(shape.joint_attention_dim, eps=EPS)
        self.img_in = nn.Linear(shape.in_channels, width)
        self.txt_in = nn.Linear(shape.joint_attention_dim, width)
        self.transformer_blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.modulations = nn.ModuleList(BlockModulation(width) for _ in range(shape.num_layers))
        self.norm_out = ModulatedNorm(width, EPS, bias=True)
        self.proj_out = nn.Linear(width, shape.in_channels)

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        target: int,
        lengths: tuple[int, ...],
        timestep: torch.Tensor,
        modulation: torch.Tensor,
        ropes: Ropes,
    ) -> Visits[torch.Tensor]:
        """The velocity of the first `target` image tokens in every branch; the others are references'.

        `image`: [branches, tokens, in_channels]; `text`: [1, sum of lengths, joint_attention_dim], the branches'
        prompts one after another, of `lengths` tokens; `timestep`: [1], up to 1; `modulation`: [blocks, streams, 6, 1,
        1, width], its `tabulate`, of streams image, text and, if references have one of their own, references.
        """
        image, text = self.img_in(image), self.txt_in(self.txt_norm(text))
        for block, shifts in zip(self.transformer_blocks, modulation, strict=True):
            yield Pause.BLOCK
            image, text = block(image, text, target, lengths, shifts, ropes)
        velocity: torch.Tensor = self.proj_out(self.norm_out(image[:, :target], self.time_text_embed(timestep)))
        return velocity

    def tabulate(self, timesteps: torch.Tensor) -> torch.Tensor:
        """[steps, blocks, 2, 6, 1, 1, width], on the host: of each of [steps] timesteps, each block's shift, scale and
        gate, for attention and for the feed-forward layer, of image and of text.

        Each layer's weights are on the timesteps' device only while it runs, so all of them cross the link once.
        """
        times = torch.cat([F.silu(self.time_text_embed(time)) for time in timesteps.split(1)])
        width = times[0].shape[-1]
        table = torch.empty(len(times), len(self.modulations), 2, 6 * width, dtype=timesteps.dtype)
        for index, modulation in enumerate(self.modulations):
            table[:, index] = modulation(times)
        return table.unflatten(-1, (6, 1, 1, width))


class TimeEmbedding(nn.Module):
    """The embedding of the timestep: [1] to [1, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = ScalarEmbedding(TIME_CHANNELS, width, bias=True)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        time: torch.Tensor = self.timestep_embedder(sinusoid(timestep, TIME_CHANNELS, TRAIN_TIMESTEPS))
        return time


class BlockModulation(nn.Module):
    """A linear map of SiLU(time) to shift, scale and gate of one block's image and text."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.img_mod, self.txt_mod = RowsLinear(width, 6 * width), RowsLinear(width, 6 * width)

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """[steps, width] to [steps, 2, 6 * width]."""
        return torch.stack((self.img_mod(times), self.txt_mod(times)), dim=1)


class RowsLinear(nn.Linear):
    """A linear layer that takes one row after another: a product of all rows at once differs in the last bits."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[rows, in_features] to [rows, out_features]."""
        return torch.cat([super(RowsLinear, self).forward(row) for row in input.split(1)])


class Block(nn.Module):
    """Image and text, each with its own weights, attend to each other; branches do not."""

    def __init__(self, shape: QwenImageShape) -> None:
        super().__init__()
        width = shape.width
        self.attn = JointAttention(width, shape.attention_head_dim, EPS, bias=True)
        self.img_mlp = GeluFeedForward(width, FEED_FORWARD * width)
        self.txt_mlp = GeluFeedForward(width, FEED_FORWARD * width)

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        target: int,
        lengths: tuple[int, ...],
        shifts: torch.Tensor,
        ropes: Ropes,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        of_image, of_text, *of_references = shifts
        image_first, image_second = _stretches((of_image, *of_references), target)
        text_first, text_second = _stretches((of_text,), target)
        attended = self.attn(image_first.norm(image), text_first.norm(text), lengths, ropes)
        image = image + image_first.gate(attended[0])
        text = text + text_first.gate(attended[1])
        del attended
        image = image + image_second.gate(self.img_mlp(image_second.norm(image)))
        text = text + text_second.gate(self.txt_mlp(text_second.norm(text)))
        return within_half(image), within_half(text)


class Stretches(NamedTuple):
    """The modulation of a sequence stretch by stretch. The first stretch has `first` tokens; a single one is the whole
    sequence."""

    shifts: tuple[Shift, ...]
    first: int

    def norm(self, states: torch.Tensor) -> torch.Tensor:
        return self._each(lambda part, by: modulated_norm(part, by.shift, by.scale, EPS), states)

    def gate(self, states: torch.Tensor) -> torch.Tensor:
        return self._each(lambda part, by: by.gate * part, states)

    def _each(self, function: Callable[[torch.Tensor, Shift], torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        if len(self.shifts) == 1:
            return function(states, self.shifts[0])
        parts = states[:, : self.first], states[:, self.first :]
        return torch.cat([function(part, by) for part, by in zip(parts, self.shifts, strict=True)], dim=1)


class JointAttention(JointProjections):
    """Attention over text and image together, in each branch on its own."""

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, lengths: tuple[int, ...], ropes: Ropes
    ) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = self.query(image, text), self.key(image, text), self.value(image, text)
        rotated = _rotate(query, ropes), _rotate(key, ropes), value
        branches = zip(*(_branches(*states, lengths) for states in rotated), strict=True)
        attended = [attention(*branch) for branch in branches]
        of_text = torch.cat([states[:, :length] for states, length in zip(attended, lengths, strict=True)], dim=1)
        of_image = torch.cat([states[:, length:] for states, length in zip(attended, lengths, strict=True)])
        return self.to_out[0](of_image), self.to_add_out(of_text)


def _rotate(states: tuple[torch.Tensor, torch.Tensor], ropes: Ropes) -> tuple[torch.Tensor, torch.Tensor]:
    text, image = states
    return rotate(text, ropes.text), rotate(image, ropes.image)


def _branches(text: torch.Tensor, image: torch.Tensor, lengths: tuple[int, ...]) -> list[torch.Tensor]:
    """Each branch's sequence: its text, then its image."""
    return [torch.cat(pair, dim=1) for pair in zip(text.split(lengths, dim=1), image.split(1), strict=True)]


def _stretches(streams: Sequence[torch.Tensor], first: int) -> tuple[Stretches, Stretches]:
    """The modulations before attention and after it. `streams`: [6, 1, 1, width] each."""
    before = tuple(Shift(*stream[:3]) for stream in streams)
    after = tuple(Shift(*stream[3:]) for stream in streams)
    return Stretches(before, first), Stretches(after, first)
