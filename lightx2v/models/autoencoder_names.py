"""The names of autoencoders' layers in the code of their makers."""

from __future__ import annotations

from collections.abc import Mapping

from lightx2v.weights.names import Rows, Table, row

HALVES = ("encoder", "decoder")

LDM_RESIDUAL = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
LDM_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

WAN_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
WAN_ATTENTION = {"norm": "norm", "to_qkv": "to_qkv", "proj": "proj"}
WAN_RESAMPLE = {"resample.1": "resample.1", "time_conv": "time_conv"}


def ldm_names(levels: int) -> Table:
    """The table for latent diffusion's autoencoder, as FLUX.1 and FLUX.2 have it, with pictures of `levels` sizes. Both
    halves count the sizes from the largest there."""
    table = {"encoder.quant_conv": row("quant_conv"), "decoder.post_quant_conv": row("post_quant_conv")}
    for half in HALVES:
        table[f"{half}.norm_out"] = row(f"{half}.conv_norm_out")
        table |= _within(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", LDM_RESIDUAL)
        table |= _within(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", LDM_RESIDUAL)
        table |= _within(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", LDM_ATTENTION)
    for theirs in range(levels):
        down, up = f"encoder.down_blocks.{theirs}", f"decoder.up_blocks.{levels - 1 - theirs}"
        table |= _within(f"encoder.down.{theirs}.block.*", f"{down}.resnets.*", LDM_RESIDUAL)
        table |= _within(f"decoder.up.{theirs}.block.*", f"{up}.resnets.*", LDM_RESIDUAL)
        table[f"encoder.down.{theirs}.downsample.conv"] = row(f"{down}.downsamplers.0.conv")
        table[f"decoder.up.{theirs}.upsample.conv"] = row(f"{up}.upsamplers.0.conv")
    return table


def wan_names(levels: int, depth: int) -> Table:
    """The table for the autoencoder of Wan 2.1 and Qwen-Image, with pictures of `levels` sizes and `depth` blocks of
    the encoder at each. All blocks stand in one list there."""
    table = _wan_outside() | _within("encoder.downsamples.*", "encoder.down_blocks.*", WAN_RESIDUAL | WAN_RESAMPLE)
    for level in range(levels):
        first, up = level * (depth + 2), f"decoder.up_blocks.{level}"
        for index in range(depth + 1):
            table |= _within(f"decoder.upsamples.{first + index}", f"{up}.resnets.{index}", WAN_RESIDUAL)
        table |= _within(f"decoder.upsamples.{first + depth + 1}", f"{up}.upsamplers.0", WAN_RESAMPLE)
    return table


def wan_residual_names(levels: int, depth: int) -> Table:
    """The table for the autoencoder of Wan 2.2's TI2V-5B, where each size has a list of its own."""
    table = _wan_outside()
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{level}"
        their_down, their_up = f"encoder.downsamples.{level}.downsamples", f"decoder.upsamples.{level}.upsamples"
        table |= _within(f"{their_down}.*", f"{down}.resnets.*", WAN_RESIDUAL)
        table |= _within(f"{their_down}.{depth}", f"{down}.downsampler", WAN_RESAMPLE)
        table |= _within(f"{their_up}.*", f"{up}.resnets.*", WAN_RESIDUAL)
        table |= _within(f"{their_up}.{depth + 1}", f"{up}.upsampler", WAN_RESAMPLE)
    return table


def _wan_outside() -> dict[str, tuple[Rows, ...]]:
    """The entries outside the lists of blocks."""
    table = {"conv1": row("quant_conv"), "conv2": row("post_quant_conv")}
    for half in HALVES:
        table |= _within(half, half, {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"})
        table |= _within(f"{half}.middle.0", f"{half}.mid_block.resnets.0", WAN_RESIDUAL)
        table |= _within(f"{half}.middle.1", f"{half}.mid_block.attentions.0", WAN_ATTENTION)
        table |= _within(f"{half}.middle.2", f"{half}.mid_block.resnets.1", WAN_RESIDUAL)
    return table


def _within(theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, tuple[Rows, ...]]:
    """The entries for the layers of one block."""
    return {f"{theirs}.{name}": row(f"{ours}.{own}") for name, own in names.items()}
