"""Names of linear layers in Black Forest Labs' own code, and in LoRA files that were trained with it.

The last layer's modulation is left out: its two halves lie the other way round there, so a LoRA of it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

WHOLE: Mapping[str, str] = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "final_layer.linear": "proj_out",
}
DOUBLE: Mapping[str, tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
SINGLE: Mapping[str, tuple[str, ...]] = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}


def aliases(doubles: int, singles: int) -> dict[str, tuple[str, ...]]:
    """The names for a transformer with this many double and single blocks, each with the layers of ours that it stands
    for."""
    names: dict[str, tuple[str, ...]] = {theirs: (ours,) for theirs, ours in WHOLE.items()}
    for index in range(doubles):
        names |= _within(f"double_blocks.{index}", f"transformer_blocks.{index}", DOUBLE)
    for index in range(singles):
        names |= _within(f"single_blocks.{index}", f"single_transformer_blocks.{index}", SINGLE)
    return names


def _within(theirs: str, ours: str, names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {f"{theirs}.{name}": tuple(f"{ours}.{layer}" for layer in layers) for name, layers in names.items()}
