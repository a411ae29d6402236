"""The encoder of Qwen-Image's autoencoder for stills, built from the decoder's layers.

Names of modules are those of the checkpoints' tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from lightx2v.models.qwen_image.decoder import (
    COLOURS,
    ChannelNorm,
    DecoderShape,
    MidBlock,
    ResidualBlock,
    StillDecoder,
)


class StillAutoencoder(StillDecoder):
    """The decoder and the encoder together."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape)
        self.encoder = Encoder(shape)
        self.quant_conv = nn.Conv2d(2 * shape.z_dim, 2 * shape.z_dim, 1)

    def encode(self, colours: torch.Tensor) -> torch.Tensor:
        """[1, 3, height, width] from -1 to 1 to the most likely latents, [1, z_dim, height / 8, width / 8]."""
        mean: torch.Tensor = self.quant_conv(self.encoder(colours)).chunk(2, dim=1)[0]
        return mean


class Encoder(nn.Module):
    """Colours to the parameters of the latents: blocks that halve the sides, then a middle block."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        widths = [shape.base_dim * factor for factor in shape.dim_mult]
        self.conv_in = nn.Conv2d(COLOURS, shape.base_dim, 3, padding=1)
        self.down_blocks = nn.ModuleList(_down_blocks(shape.base_dim, widths, shape.num_res_blocks))
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * shape.z_dim, 3, padding=1)

    def forward(self, colours: torch.Tensor) -> torch.Tensor:
        states = self.conv_in(colours)
        for block in self.down_blocks:
            states = block(states)
        output: torch.Tensor = self.conv_out(F.silu(self.norm_out(self.mid_block(states))))
        return output


class Reduction(nn.Module):
    """Downsampling to half the height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.resample(states)
        return output


def _down_blocks(into: int, widths: list[int], depth: int) -> Iterator[nn.Module]:
    """The blocks as one flat list, as they are stored."""
    for level, width in enumerate(widths):
        for _ in range(depth):
            yield ResidualBlock(into, width)
            into = width
        if level < len(widths) - 1:
            yield Reduction(width)
