"""Qwen-Image: what its pictures from text can reach. The head of the language model and the eyes are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from benchmarks.checkpoint.shape import Shape, write_files, write_tokenizer
from benchmarks.checkpoint.weights import SHARD_NBYTES, write_weights

SCHEDULER = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}
QWEN_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
"""As published: at the top of the configuration, in the words of older versions of transformers."""

TRANSFORMER_20B: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 56, 56],
}

SHAPE = Shape(TRANSFORMER_20B, QWEN_7B, {"base_dim": 96})


def write_checkpoint(folder: Path, shape: Shape, shard_nbytes: int = SHARD_NBYTES) -> None:
    """Writes `shape` under `folder`, in bf16, in files of at most about `shard_nbytes`."""
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel.from_config(shape.transformer)
        text_encoder = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**shape.text_encoder))
        vae = AutoencoderKLQwenImage(**shape.vae)
    complete = Shape(shape.transformer, shape.text_encoder | {"model_type": "qwen2_5_vl"}, dict(vae.config))
    write_files(folder, {"_class_name": "QwenImagePipeline"}, SCHEDULER, complete)
    write_tokenizer(folder)
    parts = {
        folder / "text_encoder": {f"model.{name}": meta for name, meta in text_encoder.state_dict().items()},
        folder / "transformer": transformer.state_dict(),
        folder / "vae": vae.state_dict(),
    }
    write_weights(parts, shard_nbytes)
