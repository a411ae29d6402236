"""The names of the transformer's layers in Black Forest Labs' own code."""

from __future__ import annotations

from lightx2v.weights.names import Rows, Table, row, rows

DOUBLE, SINGLE = "transformer_blocks.*", "single_transformer_blocks.*"

TRANSFORMER: Table = {
    "img_in": row("x_embedder"),
    "txt_in": row("context_embedder"),
    "time_in.in_layer": row("time_guidance_embed.timestep_embedder.linear_1"),
    "time_in.out_layer": row("time_guidance_embed.timestep_embedder.linear_2"),
    "guidance_in.in_layer": row("time_guidance_embed.guidance_embedder.linear_1"),
    "guidance_in.out_layer": row("time_guidance_embed.guidance_embedder.linear_2"),
    "single_stream_modulation.lin": row("single_stream_modulation.linear"),
    "double_stream_modulation_img.lin": row("double_stream_modulation_img.linear"),
    "double_stream_modulation_txt.lin": row("double_stream_modulation_txt.linear"),
    "final_layer.linear": row("proj_out"),
    # The shift comes first there, the scale first here.
    "final_layer.adaLN_modulation.1": (Rows("norm_out.linear", 1, 2), Rows("norm_out.linear", 0, 2)),
    "double_blocks.*.img_attn.qkv": rows(f"{DOUBLE}.attn", "to_q", "to_k", "to_v"),
    "double_blocks.*.img_attn.proj": row(f"{DOUBLE}.attn.to_out.0"),
    "double_blocks.*.img_attn.norm.query_norm.scale": row(f"{DOUBLE}.attn.norm_q.weight"),
    "double_blocks.*.img_attn.norm.key_norm.scale": row(f"{DOUBLE}.attn.norm_k.weight"),
    "double_blocks.*.img_mlp.0": row(f"{DOUBLE}.ff.linear_in"),
    "double_blocks.*.img_mlp.2": row(f"{DOUBLE}.ff.linear_out"),
    "double_blocks.*.txt_attn.qkv": rows(f"{DOUBLE}.attn", "add_q_proj", "add_k_proj", "add_v_proj"),
    "double_blocks.*.txt_attn.proj": row(f"{DOUBLE}.attn.to_add_out"),
    "double_blocks.*.txt_attn.norm.query_norm.scale": row(f"{DOUBLE}.attn.norm_added_q.weight"),
    "double_blocks.*.txt_attn.norm.key_norm.scale": row(f"{DOUBLE}.attn.norm_added_k.weight"),
    "double_blocks.*.txt_mlp.0": row(f"{DOUBLE}.ff_context.linear_in"),
    "double_blocks.*.txt_mlp.2": row(f"{DOUBLE}.ff_context.linear_out"),
    "single_blocks.*.linear1": row(f"{SINGLE}.attn.to_qkv_mlp_proj"),
    "single_blocks.*.linear2": row(f"{SINGLE}.attn.to_out"),
    "single_blocks.*.norm.query_norm.scale": row(f"{SINGLE}.attn.norm_q.weight"),
    "single_blocks.*.norm.key_norm.scale": row(f"{SINGLE}.attn.norm_k.weight"),
}
