"""Wan's transformer: blocks of attention within the video, attention to the text, and feed-forward.

Names of modules are those of the checkpoints' tensors. Blocks hold no state but weights, and all of a block's weights
are read within its own call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from lightx2v.errors import InvalidCheckpoint
from lightx2v.layers.attention import attention
from lightx2v.layers.embedding import ScalarEmbedding, sinusoid
from lightx2v.layers.feedforward import GeluFeedForward
from lightx2v.layers.modulation import Shift, modulated_norm
from lightx2v.layers.rope import Rope, rotate
from lightx2v.models.configuration import read_configuration, read_fields
from lightx2v.models.visits import Pause, Visits


@dataclass(frozen=True, slots=True)
class WanShape:
    """A transformer's `config.json`, but for what is the same in all checkpoints."""

    patch_size: tuple[int, int, int]
    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int
    text_dim: int
    freq_dim: int
    ffn_dim: int
    num_layers: int
    eps: float
    image_dim: int | None
    """Features of a picture's tokens; None if the transformer sees no picture."""

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def axes(self) -> tuple[int, int, int]:
        """Dimensions of a head that turn with the frame, the row and the column."""
        plane = 2 * (self.attention_head_dim // 6)
        return self.attention_head_dim - 2 * plane, plane, plane


def read_shape(checkpoint: Path, folder: str) -> WanShape:
    """The shape of the transformer in `folder`.

    Raises InvalidCheckpoint if the configuration is incomplete, or that of a transformer which sees two pictures.
    """
    config = f"{folder}/config.json"
    values, file = read_configuration(checkpoint, config), checkpoint / config
    if values.get("pos_embed_seq_len"):
        raise InvalidCheckpoint(f"{file}: a transformer that sees two pictures (pos_embed_seq_len) is not supported")
    shape = read_fields(WanShape, checkpoint, config, image_dim=None)
    if values.get("added_kv_proj_dim") != (shape.width if shape.image_dim else None):
        raise InvalidCheckpoint(f"{file}: added_kv_proj_dim must be the width, {shape.width}, with image_dim only")
    return shape


class WanTransformer(nn.Module):
    """Patches of a video through blocks of attention to itself and to the text."""

    def __init__(self, shape: WanShape) -> None:
        super().__init__()
        self.patch, self.eps = shape.patch_size, shape.eps
        self.patch_embedding = nn.Conv3d(shape.in_channels, shape.width, self.patch, self.patch)
        self.condition_embedder = ConditionEmbedding(shape)
        self.blocks = nn.ModuleList(WanBlock(shape) for _ in range(shape.num_layers))
        self.scale_shift_table = nn.Parameter(torch.empty(1, 2, shape.width))
        self.proj_out = nn.Linear(shape.width, shape.out_channels * torch.Size(self.patch).numel())

    def forward(
        self,
        latents: torch.Tensor,
        text: torch.Tensor,
        timestep: torch.Tensor,
        rope: Rope,
        image_features: torch.Tensor | None = None,
    ) -> Visits[torch.Tensor]:
        """The velocity of every latent.

        `latents`: [batch, channels, frames, rows, columns]; `text`: [batch, tokens, text_dim]; `timestep`: fp32, up to
        1000, [1] or [frames], of patches as of latents; `rope`: of the patches, frame by frame; `image_features`:
        [batch, tokens, image_dim] where the transformer sees a picture.
        """
        patches = self.patch_embedding(latents)
        grid = patches.shape[2:]
        states = patches.flatten(2).transpose(1, 2).contiguous()
        del patches
        time, shifts, text, image_features = self.condition_embedder(timestep, text, image_features)
        for block in self.blocks:
            yield Pause.BLOCK
            states = block(states, text, image_features, shifts, rope)
        shift, scale = (self.scale_shift_table + time[:, None]).chunk(2, dim=1)
        states = normed(states, shift, scale, self.eps)
        return self._unpatch(self.proj_out(states), grid)

    def _unpatch(self, tokens: torch.Tensor, grid: torch.Size) -> torch.Tensor:
        """[batch, tokens, patch * channels] to [batch, channels, frames, rows, columns]."""
        parts = tokens.unflatten(2, (*self.patch, -1)).unflatten(1, grid)
        return parts.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class ConditionEmbedding(nn.Module):
    """Embeddings of the timestep, of text and of a picture in the width of the transformer, and the modulations of the
    blocks."""

    def __init__(self, shape: WanShape) -> None:
        super().__init__()
        self.channels = shape.freq_dim
        self.time_embedder = ScalarEmbedding(shape.freq_dim, shape.width, bias=True)
        self.time_proj = nn.Linear(shape.width, 6 * shape.width)
        self.text_embedder = TextEmbedding(shape.text_dim, shape.width)
        if shape.image_dim:
            self.image_embedder = ImageEmbedding(shape.image_dim, shape.width)

    def forward(
        self, timestep: torch.Tensor, text: torch.Tensor, image_features: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Returns time [times, width], modulations [times, 6, width], text and picture. Time is embedded in fp32; all
        that follows is in the dtype of `text`."""
        time = self.time_embedder(sinusoid(timestep, self.channels)).to(text.dtype)
        shifts = self.time_proj(F.silu(time)).unflatten(1, (6, -1))
        return (
            time,
            shifts,
            self.text_embedder(text),
            None if image_features is None else self.image_embedder(image_features),
        )


class TextEmbedding(nn.Module):
    """Linear, GELU by its tanh approximation, Linear."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


class ImageEmbedding(nn.Module):
    """Linear, GELU, Linear between norms in fp32."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(width)
        self.ff = GeluFeedForward(features, features, width, approximate="none")

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        states = self.ff(self.norm1(image_features.float()).to(image_features.dtype))
        normed: torch.Tensor = self.norm2(states.float()).to(image_features.dtype)
        return normed


class WanBlock(nn.Module):
    """Attention within the video, attention to the text, feed-forward; norms and gates in fp32."""

    def __init__(self, shape: WanShape) -> None:
        super().__init__()
        self.eps = shape.eps
        self.attn1, self.attn2 = SelfAttention(shape), CrossAttention(shape)
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.ffn = GeluFeedForward(shape.width, shape.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.empty(1, 6, shape.width))

    def forward(
        self,
        states: torch.Tensor,
        text: torch.Tensor,
        image_features: torch.Tensor | None,
        shifts: torch.Tensor,
        rope: Rope,
    ) -> torch.Tensor:
        parts = (self.scale_shift_table + shifts.float()).chunk(6, dim=1)
        within, forward = Shift(*parts[:3]), Shift(*parts[3:])
        inner = normed(states, within.shift, within.scale, self.eps)
        states = gated(states, self.attn1(inner, rope), within)
        states = states + self.attn2(self.norm2(states.float()).to(states.dtype), text, image_features)
        return gated(states, self.ffn(normed(states, forward.shift, forward.scale, self.eps)), forward)


class Attention(nn.Module):
    """The projections of both kinds of attention. Queries and keys are normalised over all heads together."""

    def __init__(self, shape: WanShape) -> None:
        super().__init__()
        width = shape.width
        self.head_dim = shape.attention_head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = nn.RMSNorm(width, eps=shape.eps), nn.RMSNorm(width, eps=shape.eps)
        self.to_out = nn.ModuleList((nn.Linear(width, width),))

    def heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim))


class SelfAttention(Attention):
    """Attention within the video."""

    def forward(self, states: torch.Tensor, rope: Rope) -> torch.Tensor:
        query = rotate(self.heads(self.norm_q(self.to_q(states))), rope)
        key = rotate(self.heads(self.norm_k(self.to_k(states))), rope)
        return self.to_out[0](attention(query, key, self.heads(self.to_v(states))))


class CrossAttention(Attention):
    """Attention to the text and, with keys and values of its own, to a picture. The two results add up."""

    def __init__(self, shape: WanShape) -> None:
        super().__init__(shape)
        if shape.image_dim:
            self.add_k_proj, self.add_v_proj = (nn.Linear(shape.width, shape.width) for _ in range(2))
            self.norm_added_k = nn.RMSNorm(shape.width, eps=shape.eps)

    def forward(self, states: torch.Tensor, text: torch.Tensor, image_features: torch.Tensor | None) -> torch.Tensor:
        query = self.heads(self.norm_q(self.to_q(states)))
        attended = attention(query, self.heads(self.norm_k(self.to_k(text))), self.heads(self.to_v(text)))
        if image_features is not None:
            key, value = self.norm_added_k(self.add_k_proj(image_features)), self.add_v_proj(image_features)
            attended = attended + attention(query, self.heads(key), self.heads(value))
        return self.to_out[0](attended)


def normed(states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """The modulated norm in fp32, cast back. `shift`, `scale`: [times, 1, width], each for an equal part of the tokens:
    those of all frames, or of one."""
    parts = states.unflatten(1, (len(shift), -1))
    return modulated_norm(parts.float(), shift, scale, eps).to(states.dtype).flatten(1, 2)


def gated(states: torch.Tensor, change: torch.Tensor, by: Shift) -> torch.Tensor:
    """states + gate * change, in fp32 and cast back; gates as shifts in `normed`."""
    parts, changes = (tensor.unflatten(1, (len(by.gate), -1)).float() for tensor in (states, change))
    return torch.addcmul(parts, changes, by.gate).to(states.dtype).flatten(1, 2)
