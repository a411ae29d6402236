"""Tiny random checkpoints of Z-Image, written by diffusers and transformers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.checkpoint.tokenizer import make_tokenizer
from benchmarks.checkpoint.z_image import QWEN3_4B, TRANSFORMER, VAE
from tests.checkpoints.randomise import randomise

HIDDEN = 32
"""Of the text encoder; its heads together are twice as wide."""


def write_z_image(folder: Path, *, turbo: bool = True, sample_size: int = 64, max_shard_size: str = "5GB") -> Path:
    """A checkpoint of 1.2 million parameters. The same bytes at every call."""
    tokenizer = make_tokenizer()
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if turbo else 6.0),
        vae=make_vae(sample_size),
        text_encoder=make_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=make_transformer(),
    )
    pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def write_z_image_configurations(folder: Path) -> None:
    """The published ones of the base model, and a small tokenizer."""
    files: dict[str, dict[str, Any]] = {
        "model_index.json": {"_class_name": "ZImagePipeline"},
        "scheduler/scheduler_config.json": {"shift": 6.0, "use_dynamic_shifting": False},
        "transformer/config.json": TRANSFORMER,
        "text_encoder/config.json": Qwen3Config(**QWEN3_4B).to_dict(),
        "vae/config.json": VAE,
    }
    for name, values in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    make_tokenizer().save_pretrained(folder / "tokenizer")


def make_text_encoder(vocabulary: int) -> Qwen3ForCausalLM:
    widths = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": 6, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocabulary}
    return randomise(Qwen3ForCausalLM(Qwen3Config(**QWEN3_4B | widths | heads)), seed=1)


def make_vae(sample_size: int = 64) -> AutoencoderKL:
    small = {"block_out_channels": (16, 32, 32, 32), "layers_per_block": 1, "norm_num_groups": 8}
    return randomise(AutoencoderKL(**_arguments(VAE) | small | {"sample_size": sample_size}), seed=2)


def make_transformer() -> ZImageTransformer2DModel:
    small = {"dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4, "cap_feat_dim": HIDDEN, "axes_dims": [4, 6, 6]}
    return randomise(ZImageTransformer2DModel(**_arguments(TRANSFORMER) | small), seed=3)


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "_class_name"}
