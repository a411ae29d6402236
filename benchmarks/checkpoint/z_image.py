"""Z-Image-Turbo: everything that is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from transformers import Qwen3Config

from benchmarks.checkpoint.flux2 import TEXT_ENCODER, qwen3_states
from benchmarks.checkpoint.shape import Shape, write_files, write_tokenizer
from benchmarks.checkpoint.weights import SHARD_NBYTES, write_weights

SCHEDULER: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}
TRANSFORMER: dict[str, Any] = {
    "_class_name": "ZImageTransformer2DModel",
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
QWEN3_4B = TEXT_ENCODER | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True}

TURBO = Shape(TRANSFORMER, QWEN3_4B, VAE)


def write_checkpoint(folder: Path, shape: Shape, shard_nbytes: int = SHARD_NBYTES) -> None:
    """Writes all of `shape` under `folder`, in bf16, in files of at most about `shard_nbytes`."""
    complete = Shape(shape.transformer, Qwen3Config(**shape.text_encoder).to_dict(), shape.vae)
    write_files(folder, {"_class_name": "ZImagePipeline"}, SCHEDULER, complete)
    write_tokenizer(folder)
    with torch.device("meta"):
        transformer = ZImageTransformer2DModel.from_config(shape.transformer)
        vae = AutoencoderKL.from_config(shape.vae)
    parts = {
        folder / "text_encoder": qwen3_states(shape.text_encoder),
        folder / "transformer": transformer.state_dict(),
        folder / "vae": vae.state_dict(),
    }
    write_weights(parts, shard_nbytes)
