"""FLUX.2 klein: everything that is published, so that the reference reads it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.checkpoint.shape import Shape, write_files, write_tokenizer
from benchmarks.checkpoint.weights import SHARD_NBYTES, States, write_weights
from lightx2v.models.flux2.transformer import Flux2Transformer, read_shape

SCHEDULER = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "time_shift_type": "exponential",
}
TRANSFORMER = {
    "_class_name": "Flux2Transformer2DModel",
    "patch_size": 1,
    "in_channels": 128,
    "out_channels": None,
    "attention_head_dim": 128,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": [32, 32, 32, 32],
    "rope_theta": 2000,
    "eps": 1e-6,
    "guidance_embeds": False,
}
TEXT_ENCODER = {
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "attention_bias": False,
    "architectures": ["Qwen3ForCausalLM"],
}
VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 32, "sample_size": 1024}


def _klein(double: int, single: int, heads: int, hidden: int, intermediate: int, tied: bool) -> Shape:
    layers = {"num_layers": double, "num_single_layers": single, "num_attention_heads": heads}
    widths = {"hidden_size": hidden, "intermediate_size": intermediate, "tie_word_embeddings": tied}
    return Shape(TRANSFORMER | layers | {"joint_attention_dim": 3 * hidden}, TEXT_ENCODER | widths, VAE)


SHAPES = {
    "klein-4b": _klein(double=5, single=20, heads=24, hidden=2560, intermediate=9728, tied=True),
    "klein-9b": _klein(double=8, single=24, heads=32, hidden=4096, intermediate=12288, tied=False),
}


def write_checkpoint(folder: Path, shape: Shape, shard_nbytes: int = SHARD_NBYTES) -> None:
    """Writes all of `shape` under `folder`, in bf16, in files of at most about `shard_nbytes`."""
    write_configurations(folder, shape)
    write_tokenizer(folder)
    with torch.device("meta"):
        transformer, vae = Flux2Transformer(read_shape(folder)), AutoencoderKLFlux2.from_config(shape.vae)
    parts = {
        folder / "text_encoder": qwen3_states(shape.text_encoder),
        folder / "transformer": transformer.state_dict(),
        folder / "vae": vae.state_dict(),
    }
    write_weights(parts, shard_nbytes)


def write_configurations(folder: Path, shape: Shape, distilled: bool = True) -> None:
    """All that a checkpoint of `shape` has, but for weights and tokenizer."""
    index = {
        "_class_name": "Flux2KleinPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler"} | SCHEDULER
    text_encoder = Qwen3Config(**shape.text_encoder).to_dict()
    complete = Shape(shape.transformer, text_encoder, {"_class_name": "AutoencoderKLFlux2"} | shape.vae)
    write_files(folder, index | ({"is_distilled": True} if distilled else {}), scheduler, complete)


def qwen3_states(config: dict[str, Any]) -> States:
    """All of a Qwen3's, its head if that is a matrix of its own."""
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**config))
    tied = model._tied_weights_keys if model.config.tie_word_embeddings else {}
    return {name: meta for name, meta in model.state_dict().items() if name not in tied}
