"""Z-Image's transformer. Image and caption are refined apart, then go as one sequence through single-stream blocks.

A step looks at one or two captions, of different lengths. The sequences of all branches lie behind each other in one
tensor, and only attention tells them apart, so every part of a block is called once per step whatever they are.

Names of modules are those of the checkpoints' tensors. Blocks hold no state but weights, and all of a block's weights
are read within its own call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lightx2v.layers.attention import attention
from lightx2v.layers.embedding import sinusoid
from lightx2v.layers.rope import Rope, rotate
from lightx2v.models.configuration import read_fields
from lightx2v.models.visits import Pause, Visits

PATCH = 2
MULTIPLE = 32
"""The image and the caption are each padded to a multiple of so many tokens, with learned vectors."""

TIME_WIDTH, TIME_HIDDEN = 256, 1024
QUERY_EPS, FINAL_EPS = 1e-5, 1e-6


@dataclass(frozen=True, slots=True)
class ZImageShape:
    """`transformer/config.json`, but for what is the same in all checkpoints."""

    in_channels: int
    dim: int
    n_layers: int
    n_refiner_layers: int
    n_heads: int
    norm_eps: float
    cap_feat_dim: int
    rope_theta: float
    axes_dims: tuple[int, ...]

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def hidden(self) -> int:
        """The width inside a feed-forward layer."""
        return int(self.dim / 3 * 8)

    @property
    def token(self) -> int:
        """Values of an image token."""
        return PATCH * PATCH * self.in_channels

    @property
    def time(self) -> int:
        """The width of the timestep's embedding."""
        return min(self.dim, TIME_WIDTH)


def read_shape(checkpoint: Path) -> ZImageShape:
    """The transformer's shape. Raises InvalidCheckpoint if the configuration is incomplete."""
    return read_fields(ZImageShape, checkpoint, "transformer/config.json")


class Sequences(NamedTuple):
    """Sequences one behind the other in one tensor: the angles of all tokens, and the length of each sequence."""

    rope: Rope
    lengths: tuple[int, ...]


class Places(NamedTuple):
    """The sequences of every branch: its padded image, its padded caption, and both together with the image first."""

    image: Sequences
    caption: Sequences
    joint: Sequences


class ZImageTransformer(nn.Module):
    """Refiners for image and caption apart, then blocks over both as one sequence."""

    def __init__(self, shape: ZImageShape) -> None:
        super().__init__()
        embedder, final = nn.Linear(shape.token, shape.dim), FinalLayer(shape)
        self.all_x_embedder = nn.ModuleDict({f"{PATCH}-1": embedder})
        self.all_final_layer = nn.ModuleDict({f"{PATCH}-1": final})
        self.noise_refiner = nn.ModuleList(ModulatedBlock(shape) for _ in range(shape.n_refiner_layers))
        self.context_refiner = nn.ModuleList(ContextBlock(shape) for _ in range(shape.n_refiner_layers))
        self.t_embedder = TimeEmbedding(shape.time)
        norm = nn.RMSNorm(shape.cap_feat_dim, eps=shape.norm_eps)
        self.cap_embedder = nn.Sequential(norm, nn.Linear(shape.cap_feat_dim, shape.dim))
        self.x_pad_token = nn.Parameter(torch.empty(1, shape.dim))
        self.cap_pad_token = nn.Parameter(torch.empty(1, shape.dim))
        self.layers = nn.ModuleList(ModulatedBlock(shape) for _ in range(shape.n_layers))

    def forward(
        self, image: torch.Tensor, captions: Sequence[torch.Tensor], time: torch.Tensor, places: Places
    ) -> Visits[torch.Tensor]:
        """The reverse of every image token's velocity: [captions, tokens, token].

        `image`: [tokens, token], the same for all captions; `captions`: [tokens, cap_feat_dim] each; `time`: [1], up to
        1000.
        """
        embedded = self.t_embedder(time)
        images = padded(self.all_x_embedder[f"{PATCH}-1"](image), self.x_pad_token).repeat(len(captions), 1)[None]
        for block in self.noise_refiner:
            yield Pause.BLOCK
            images = block(images, places.image, embedded)
        texts = torch.cat([padded(self.cap_embedder(caption), self.cap_pad_token) for caption in captions])[None]
        for block in self.context_refiner:
            yield Pause.BLOCK
            texts = block(texts, places.caption)
        branches = zip(images.split(places.image.lengths, 1), texts.split(places.caption.lengths, 1), strict=True)
        joint = torch.cat([part for branch in branches for part in branch], dim=1)
        del images, texts, branches
        for block in self.layers:
            yield Pause.BLOCK
            joint = block(joint, places.joint, embedded)
        last = torch.cat([branch[:, : len(image)] for branch in joint.split(places.joint.lengths, 1)])
        reverse: torch.Tensor = self.all_final_layer[f"{PATCH}-1"](last, embedded)
        return reverse


class TimeEmbedding(nn.Module):
    """The embedding of the timestep: [1] to [1, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_WIDTH, TIME_HIDDEN), nn.SiLU(), nn.Linear(TIME_HIDDEN, width))

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        waves = sinusoid(time, TIME_WIDTH)
        return self.mlp(waves.to(self.mlp.get_parameter("0.weight").dtype))


class Block(nn.Module):
    """Attention, then feed-forward, each normalised before and after."""

    def __init__(self, shape: ZImageShape) -> None:
        super().__init__()
        self.attention_norm1, self.attention_norm2 = _norm(shape), _norm(shape)
        self.attention = Attention(shape)
        self.ffn_norm1, self.ffn_norm2 = _norm(shape), _norm(shape)
        self.feed_forward = FeedForward(shape)


class ContextBlock(Block):
    """A block without modulation, for captions."""

    def forward(self, states: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        states = states + self.attention_norm2(self.attention(self.attention_norm1(states), sequences))
        return states + self.ffn_norm2(self.feed_forward(self.ffn_norm1(states)))


class ModulatedBlock(Block):
    """A block whose scales and gates are computed from the timestep."""

    def __init__(self, shape: ZImageShape) -> None:
        super().__init__(shape)
        self.adaLN_modulation = nn.Sequential(nn.Linear(shape.time, 4 * shape.dim))

    def forward(self, states: torch.Tensor, sequences: Sequences, time: torch.Tensor) -> torch.Tensor:
        scale_in, gate_in, scale, gate = self.adaLN_modulation(time).unsqueeze(1).chunk(4, dim=-1)
        attended = self.attention(self.attention_norm1(states) * (1 + scale_in), sequences)
        states = states + gate_in.tanh() * self.attention_norm2(attended)
        del attended
        return states + gate.tanh() * self.ffn_norm2(self.feed_forward(self.ffn_norm1(states) * (1 + scale)))


class Attention(nn.Module):
    """Attention of every sequence to itself."""

    def __init__(self, shape: ZImageShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(shape.dim, shape.dim, bias=False) for _ in range(3))
        self.norm_q, self.norm_k = (nn.RMSNorm(shape.head_dim, eps=QUERY_EPS) for _ in range(2))
        self.to_out = nn.ModuleList((nn.Linear(shape.dim, shape.dim, bias=False),))

    def forward(self, states: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        query = rotate(self.norm_q(self._heads(self.to_q(states))), sequences.rope)
        key = rotate(self.norm_k(self._heads(self.to_k(states))), sequences.rope)
        parts = (values.split(sequences.lengths, dim=1) for values in (query, key, self._heads(self.to_v(states))))
        attended = [attention(*branch) for branch in zip(*parts, strict=True)]
        return self.to_out[0](torch.cat(attended, dim=1))

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim))


class FeedForward(nn.Module):
    """SwiGLU: `w1` to the gate, `w3` to the value, `w2` back."""

    def __init__(self, shape: ZImageShape) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(shape.dim, shape.hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(shape.hidden, shape.dim, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(states)) * self.w3(states))


class FinalLayer(nn.Module):
    """The modulated norm and the projection to image tokens."""

    def __init__(self, shape: ZImageShape) -> None:
        super().__init__()
        self.linear = nn.Linear(shape.dim, shape.token)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(shape.time, shape.dim))

    def forward(self, states: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        scale = 1 + self.adaLN_modulation(time).unsqueeze(1)
        return self.linear(F.layer_norm(states, states.shape[-1:], eps=FINAL_EPS) * scale)


def to_tokens(grid: torch.Tensor, patch: int) -> torch.Tensor:
    """[batch, channels, height, width] to [batch, rows * columns, patch * patch * channels]. A latent's channels lie
    together, where FLUX.2 keeps the latents of a channel together."""
    patches = grid.unflatten(-1, (-1, patch)).unflatten(2, (-1, patch))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def to_grid(tokens: torch.Tensor, rows: int, columns: int, patch: int) -> torch.Tensor:
    """The reverse of `to_tokens`."""
    patches = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, columns))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def padding(tokens: int) -> int:
    """How many tokens are missing to a whole multiple."""
    return -tokens % MULTIPLE


def padded(states: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """[tokens, width], with `token` behind them up to a whole multiple."""
    return torch.cat((states, token.expand(padding(len(states)), -1)))


def _norm(shape: ZImageShape) -> nn.RMSNorm:
    return nn.RMSNorm(shape.dim, eps=shape.norm_eps)
