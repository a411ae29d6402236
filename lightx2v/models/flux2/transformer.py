"""FLUX.2's transformer. Double-stream blocks first, text and image apart but for attention; then single-stream blocks.

Names of modules are those of the checkpoints' tensors. Blocks hold no state but weights, and all of a block's weights
are read within its own call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lightx2v.layers.attention import attention
from lightx2v.layers.embedding import ScalarEmbedding, sinusoid
from lightx2v.layers.feedforward import FeedForward, swiglu
from lightx2v.layers.float16_range import within_half
from lightx2v.layers.joint import JointProjections
from lightx2v.layers.modulation import ModulatedNorm, Modulation, Shift, modulated_norm
from lightx2v.layers.rope import Rope, rotate
from lightx2v.models.configuration import read_fields
from lightx2v.models.visits import Pause, Visits


@dataclass(frozen=True, slots=True)
class Flux2Shape:
    """`transformer/config.json`, but for what is the same in all checkpoints."""

    in_channels: int
    num_layers: int
    num_single_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    timestep_guidance_channels: int
    mlp_ratio: float
    axes_dims_rope: tuple[int, ...]
    rope_theta: float
    eps: float
    guidance_embeds: bool

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def hidden(self) -> int:
        """The width inside a feed-forward layer."""
        return int(self.width * self.mlp_ratio)


def read_shape(checkpoint: Path) -> Flux2Shape:
    """The transformer's shape. Raises InvalidCheckpoint if the configuration is incomplete."""
    # FLUX.2-dev's was written before there was a choice of guidance_embeds.
    return read_fields(Flux2Shape, checkpoint, "transformer/config.json", guidance_embeds=True)


class Flux2Transformer(nn.Module):
    """Double-stream blocks, then single-stream blocks, with modulations that all blocks of a kind share."""

    def __init__(self, shape: Flux2Shape) -> None:
        super().__init__()
        width = shape.width
        self.time_guidance_embed = TimeEmbedding(shape)
        self.double_stream_modulation_img = Modulation(width, sets=2)
        self.double_stream_modulation_txt = Modulation(width, sets=2)
        self.single_stream_modulation = Modulation(width, sets=1)
        self.x_embedder = nn.Linear(shape.in_channels, width, bias=False)
        self.context_embedder = nn.Linear(shape.joint_attention_dim, width, bias=False)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(shape) for _ in range(shape.num_layers))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(shape) for _ in range(shape.num_single_layers))
        self.norm_out = ModulatedNorm(width, shape.eps)
        self.proj_out = nn.Linear(width, shape.in_channels, bias=False)

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        timestep: torch.Tensor,
        rope: Rope,
        guidance: torch.Tensor | None = None,
    ) -> Visits[torch.Tensor]:
        """The velocity of every image token.

        `image`: [batch, tokens, in_channels], the target's tokens, then the references'; `text`: [batch, tokens,
        joint_attention_dim]; `timestep`: [batch], up to 1000; `rope`: of text, then image.
        """
        time = self.time_guidance_embed(timestep, guidance)
        image_shifts, text_shifts = self.double_stream_modulation_img(time), self.double_stream_modulation_txt(time)
        (joint_shift,) = self.single_stream_modulation(time)
        image, text = self.x_embedder(image), self.context_embedder(text)
        for block in self.transformer_blocks:
            yield Pause.BLOCK
            image, text = block(image, text, image_shifts, text_shifts, rope)
        joint, tokens = torch.cat((text, image), dim=1), text.shape[1]
        del image, text, image_shifts, text_shifts
        for block in self.single_transformer_blocks:
            yield Pause.BLOCK
            joint = block(joint, joint_shift, rope)
        velocity: torch.Tensor = self.proj_out(self.norm_out(joint[:, tokens:], time))
        return velocity


class TimeEmbedding(nn.Module):
    """The timestep's embedding; guidance-distilled checkpoints add that of the guidance scale."""

    def __init__(self, shape: Flux2Shape) -> None:
        super().__init__()
        self.channels = shape.timestep_guidance_channels
        self.timestep_embedder = ScalarEmbedding(self.channels, shape.width)
        self.guidance_embedder = ScalarEmbedding(self.channels, shape.width) if shape.guidance_embeds else None

    def forward(self, timestep: torch.Tensor, guidance: torch.Tensor | None) -> torch.Tensor:
        time = self.timestep_embedder(sinusoid(timestep, self.channels))
        if self.guidance_embedder is None or guidance is None:
            return time
        return time + self.guidance_embedder(sinusoid(guidance, self.channels))


class DoubleBlock(nn.Module):
    """Image and text, each with its own weights, attend to each other."""

    def __init__(self, shape: Flux2Shape) -> None:
        super().__init__()
        self.eps = shape.eps
        self.attn = JointAttention(shape.width, shape.attention_head_dim, shape.eps)
        self.ff = FeedForward(shape.width, shape.hidden)
        self.ff_context = FeedForward(shape.width, shape.hidden)

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        image_shifts: tuple[Shift, Shift],
        text_shifts: tuple[Shift, Shift],
        rope: Rope,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        attended = self.attn(self._norm(image, image_shifts[0]), self._norm(text, text_shifts[0]), rope)
        image = image + image_shifts[0].gate * attended[0]
        text = text + text_shifts[0].gate * attended[1]
        del attended
        image = image + image_shifts[1].gate * self.ff(self._norm(image, image_shifts[1]))
        text = text + text_shifts[1].gate * self.ff_context(self._norm(text, text_shifts[1]))
        return image, within_half(text)

    def _norm(self, states: torch.Tensor, by: Shift) -> torch.Tensor:
        return modulated_norm(states, by.shift, by.scale, self.eps)


class JointAttention(JointProjections):
    """Attention over text and image together."""

    def forward(self, image: torch.Tensor, text: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = self.query(image, text), self.key(image, text), self.value(image, text)
        rotated = rotate(torch.cat(query, dim=1), rope), rotate(torch.cat(key, dim=1), rope)
        attended = attention(*rotated, torch.cat(value, dim=1))
        return self.to_out[0](attended[:, text.shape[1] :]), self.to_add_out(attended[:, : text.shape[1]])


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side, over text and image as one sequence."""

    def __init__(self, shape: Flux2Shape) -> None:
        super().__init__()
        self.eps = shape.eps
        self.attn = ParallelAttention(shape)

    def forward(self, joint: torch.Tensor, by: Shift, rope: Rope) -> torch.Tensor:
        attended = self.attn(modulated_norm(joint, by.shift, by.scale, self.eps), rope)
        return within_half(joint + by.gate * attended)


class ParallelAttention(nn.Module):
    """One projection in, to query | key | value | feed-forward, and one out, from attention | feed-forward."""

    def __init__(self, shape: Flux2Shape) -> None:
        super().__init__()
        width, hidden, head_dim = shape.width, shape.hidden, shape.attention_head_dim
        self.head_dim = head_dim
        self.widths = (3 * width, 2 * hidden)
        self.to_qkv_mlp_proj = nn.Linear(width, sum(self.widths), bias=False)
        self.norm_q, self.norm_k = nn.RMSNorm(head_dim, eps=shape.eps), nn.RMSNorm(head_dim, eps=shape.eps)
        self.to_out = nn.Linear(width + hidden, width, bias=False)

    def forward(self, states: torch.Tensor, rope: Rope) -> torch.Tensor:
        attended, gated = self.to_qkv_mlp_proj(states).split(self.widths, dim=-1)
        query, key, value = attended.unflatten(-1, (3, -1, self.head_dim)).unbind(2)
        attended = attention(rotate(self.norm_q(query), rope), rotate(self.norm_k(key), rope), value)
        return self.to_out(torch.cat((attended, swiglu(gated)), dim=-1))
