"""Random LoRAs of FLUX.2's tiny transformer, in the spellings that are found in the wild."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH, HIDDEN = 64, 192
LINEAR: Mapping[str, tuple[int, int]] = {
    "x_embedder": (32, WIDTH),
    "context_embedder": (96, WIDTH),
    "time_guidance_embed.timestep_embedder.linear_1": (256, WIDTH),
    "double_stream_modulation_img.linear": (WIDTH, 6 * WIDTH),
    "transformer_blocks.0.attn.to_q": (WIDTH, WIDTH),
    "transformer_blocks.0.attn.add_v_proj": (WIDTH, WIDTH),
    "transformer_blocks.1.attn.to_out.0": (WIDTH, WIDTH),
    "transformer_blocks.1.ff.linear_in": (WIDTH, 2 * HIDDEN),
    "transformer_blocks.1.ff_context.linear_out": (HIDDEN, WIDTH),
    "single_transformer_blocks.0.attn.to_qkv_mlp_proj": (WIDTH, 3 * WIDTH + 2 * HIDDEN),
    "single_transformer_blocks.2.attn.to_out": (WIDTH + HIDDEN, WIDTH),
    "proj_out": (WIDTH, 32),
}
"""Diffusers' names, what enters and what leaves."""

FUSED: Mapping[str, tuple[int, int]] = {
    "img_in": (32, WIDTH),
    "time_in.in_layer": (256, WIDTH),
    "double_blocks.0.img_attn.qkv": (WIDTH, 3 * WIDTH),
    "double_blocks.1.txt_attn.qkv": (WIDTH, 3 * WIDTH),
    "double_blocks.1.img_attn.proj": (WIDTH, WIDTH),
    "double_blocks.0.txt_mlp.0": (WIDTH, 2 * HIDDEN),
    "double_blocks.1.img_mlp.2": (HIDDEN, WIDTH),
    "single_blocks.1.linear1": (WIDTH, 3 * WIDTH + 2 * HIDDEN),
    "single_blocks.2.linear2": (WIDTH + HIDDEN, WIDTH),
    "final_layer.linear": (WIDTH, 32),
}
"""Black Forest Labs' names."""


def peft(seed: int = 0, prefix: str = "transformer.", layers: Mapping[str, tuple[int, int]] = LINEAR) -> Tensors:
    """As diffusers and PEFT write it."""
    made: Tensors = {}
    for (name, widths), (down, up) in zip(layers.items(), _products(layers.values(), seed), strict=True):
        assert (down.shape[1], up.shape[0]) == widths
        made |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return made


def kohya(seed: int = 0) -> Tensors:
    """As Kohya's scripts write it, with alphas."""
    made: Tensors = {}
    for index, (name, (down, up)) in enumerate(zip(FUSED, _products(FUSED.values(), seed), strict=True)):
        stem = f"lora_unet_{name.replace('.', '_')}"
        made |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        if index % 3:  # without one, alpha is the rank
            made[f"{stem}.alpha"] = torch.tensor(0.5 + index)
    return made


def write(file: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    apart = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    save_file(apart, file, metadata)
    return file


def _products(widths: Iterable[tuple[int, int]], seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of several ranks, and large enough to change every pixel."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(rank, entering, generator=generator) / entering**0.5,
            torch.randn(leaving, rank, generator=generator) / rank**0.5,
        )
        for rank, (entering, leaving) in ((3 + index % 4, pair) for index, pair in enumerate(widths))
    ]


Tensors = dict[str, torch.Tensor]
