"""The names of the transformer's layers in the Wan team's own code. `patch_embedding` is the same in both."""

from __future__ import annotations

from lightx2v.weights.names import Table, row

CONDITION, IMAGE = "condition_embedder", "condition_embedder.image_embedder"
SELF, CROSS = "blocks.*.attn1", "blocks.*.attn2"

TRANSFORMER: Table = {
    "text_embedding.0": row(f"{CONDITION}.text_embedder.linear_1"),
    "text_embedding.2": row(f"{CONDITION}.text_embedder.linear_2"),
    "time_embedding.0": row(f"{CONDITION}.time_embedder.linear_1"),
    "time_embedding.2": row(f"{CONDITION}.time_embedder.linear_2"),
    "time_projection.1": row(f"{CONDITION}.time_proj"),
    "img_emb.proj.0": row(f"{IMAGE}.norm1"),
    "img_emb.proj.1": row(f"{IMAGE}.ff.net.0.proj"),
    "img_emb.proj.3": row(f"{IMAGE}.ff.net.2"),
    "img_emb.proj.4": row(f"{IMAGE}.norm2"),
    "head.head": row("proj_out"),
    "head.modulation": row("scale_shift_table"),
    "blocks.*.self_attn.q": row(f"{SELF}.to_q"),
    "blocks.*.self_attn.k": row(f"{SELF}.to_k"),
    "blocks.*.self_attn.v": row(f"{SELF}.to_v"),
    "blocks.*.self_attn.o": row(f"{SELF}.to_out.0"),
    "blocks.*.self_attn.norm_q": row(f"{SELF}.norm_q"),
    "blocks.*.self_attn.norm_k": row(f"{SELF}.norm_k"),
    "blocks.*.cross_attn.q": row(f"{CROSS}.to_q"),
    "blocks.*.cross_attn.k": row(f"{CROSS}.to_k"),
    "blocks.*.cross_attn.v": row(f"{CROSS}.to_v"),
    "blocks.*.cross_attn.o": row(f"{CROSS}.to_out.0"),
    "blocks.*.cross_attn.norm_q": row(f"{CROSS}.norm_q"),
    "blocks.*.cross_attn.norm_k": row(f"{CROSS}.norm_k"),
    "blocks.*.cross_attn.k_img": row(f"{CROSS}.add_k_proj"),
    "blocks.*.cross_attn.v_img": row(f"{CROSS}.add_v_proj"),
    "blocks.*.cross_attn.norm_k_img": row(f"{CROSS}.norm_added_k"),
    # The norms are numbered by their place there; the second and third changed places here.
    "blocks.*.norm3": row("blocks.*.norm2"),
    "blocks.*.ffn.0": row("blocks.*.ffn.net.0.proj"),
    "blocks.*.ffn.2": row("blocks.*.ffn.net.2"),
    "blocks.*.modulation": row("blocks.*.scale_shift_table"),
}
