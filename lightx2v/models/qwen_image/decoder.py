"""The decoder of Qwen-Image's autoencoder for stills. Its convolutions see one frame, so only the last slice in time of
their weights is used.

Names of modules are those of the checkpoints' tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from lightx2v.layers.attention import attention
from lightx2v.models.configuration import read_fields

COLOURS = 3
TINY = 1e-12
"""The smallest norm that a position is divided by."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The fields of `vae/config.json` that matter for a still."""

    base_dim: int
    z_dim: int
    dim_mult: Sequence[int]
    num_res_blocks: int
    latents_mean: Sequence[float]
    latents_std: Sequence[float]


def read_shape(checkpoint: Path) -> DecoderShape:
    """The decoder's shape. Raises InvalidCheckpoint if the configuration is incomplete."""
    return read_fields(DecoderShape, checkpoint, "vae/config.json")


class StillDecoder(nn.Module):
    """Latents [1, z_dim, height, width] to colours, eight times as large."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.post_quant_conv = nn.Conv2d(shape.z_dim, shape.z_dim, 1)
        self.decoder = Decoder(shape)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        colours: torch.Tensor = self.decoder(self.post_quant_conv(latents))
        return colours.clamp(-1, 1)


class Decoder(nn.Module):
    """Latents to colours: a middle block, then blocks that each double the sides but the last."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        widths = [shape.base_dim * factor for factor in reversed(shape.dim_mult)]
        self.conv_in = nn.Conv2d(shape.z_dim, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0])
        inputs, last = (widths[0], *(width // 2 for width in widths[:-1])), len(widths) - 1
        self.up_blocks = nn.ModuleList(
            UpBlock(into, width, shape.num_res_blocks + 1, enlarges=index < last)
            for index, (into, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], COLOURS, 3, padding=1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = self.mid_block(self.conv_in(states))
        for block in self.up_blocks:
            states = block(states)
        output: torch.Tensor = self.conv_out(F.silu(self.norm_out(states)))
        return output


class MidBlock(nn.Module):
    """Residual, attention, residual, at the smallest size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList((PixelAttention(width),))
        self.resnets = nn.ModuleList(ResidualBlock(width, width) for _ in range(2))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.resnets[1](self.attentions[0](self.resnets[0](states)))
        return output


class UpBlock(nn.Module):
    """Residual blocks at one size, then an enlargement if there is a larger one."""

    def __init__(self, into: int, width: int, depth: int, enlarges: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(width if index else into, width) for index in range(depth))
        self.upsamplers = nn.ModuleList((Enlargement(width),) if enlarges else ())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            states = layer(states)
        return states


class ResidualBlock(nn.Module):
    """Twice norm, SiLU and convolution, added to the input."""

    def __init__(self, into: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(into), ChannelNorm(width)
        self.conv1, self.conv2 = nn.Conv2d(into, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(into, width, 1) if into != width else nn.Identity()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        inner = self.conv1(F.silu(self.norm1(states)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        output: torch.Tensor = inner + self.conv_shortcut(states)
        return output


class PixelAttention(nn.Module):
    """Attention with one head over all positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.to_qkv, self.proj = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        # Where a position's channels do not lie together, GPUs have no kernel that does without all scores in memory.
        tokens = self.to_qkv(self.norm(states)).flatten(2).transpose(1, 2).contiguous()
        attended = attention(*tokens[:, :, None].chunk(3, dim=-1))
        output: torch.Tensor = self.proj(attended.transpose(1, 2).unflatten(2, states.shape[2:])) + states
        return output


class Enlargement(nn.Module):
    """Upsampling to twice the height and width and half the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        halving = nn.Conv2d(width, width // 2, 3, padding=1)
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest-exact"), halving)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.resample(states)
        return output


class ChannelNorm(nn.Module):
    """Each position's channels divided by their root mean square, which is computed in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(states, dim=1, keepdim=True, dtype=torch.float32).clamp_min(TINY)
        return (states / norm).to(states.dtype) * len(self.gamma) ** 0.5 * self.gamma
