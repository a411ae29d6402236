"""The names of the transformer's layers in Tongyi's own code, where they differ."""

from __future__ import annotations

from collections.abc import Iterator

from lightx2v.weights.names import Rows, Table, row, rows

BLOCKS = ("layers", "noise_refiner", "context_refiner")


def _attention(blocks: str) -> Iterator[tuple[str, tuple[Rows, ...]]]:
    attention = f"{blocks}.*.attention"
    yield f"{attention}.qkv", rows(attention, "to_q", "to_k", "to_v")
    yield f"{attention}.out", row(f"{attention}.to_out.0")
    yield f"{attention}.q_norm", row(f"{attention}.norm_q")
    yield f"{attention}.k_norm", row(f"{attention}.norm_k")


TRANSFORMER: Table = {
    "x_embedder": row("all_x_embedder.2-1"),
    "final_layer.linear": row("all_final_layer.2-1.linear"),
    "final_layer.adaLN_modulation.1": row("all_final_layer.2-1.adaLN_modulation.1"),
    **{theirs: ours for blocks in BLOCKS for theirs, ours in _attention(blocks)},
}
