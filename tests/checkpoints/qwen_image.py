"""Tiny random checkpoints of Qwen-Image, written by diffusers and transformers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.checkpoint.qwen_image import QWEN_7B, SCHEDULER, TRANSFORMER_20B
from benchmarks.checkpoint.tokenizer import make_tokenizer
from tests.checkpoints.randomise import randomise

HIDDEN = 64
"""Of the text encoder."""

VISION_7B: dict[str, Any] = {
    "depth": 32,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_chans": 3,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
    "temporal_patch_size": 2,
}


def write_qwen_image(folder: Path, *, max_shard_size: str = "5GB") -> Path:
    """A Qwen-Image checkpoint of 1.3 million parameters. The same bytes at every call."""
    tokenizer = make_tokenizer()
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=make_vae(),
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=make_transformer(),
    )
    pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def write_qwen_image_edit(folder: Path, *, zero_cond_t: bool, max_shard_size: str = "5GB") -> Path:
    """The same with the index of an edit model: of 2511 with `zero_cond_t`, of 2509 without. The published `processor`
    folder, of which nothing is read, is left out: it cannot be made without torchvision."""
    tokenizer = make_tokenizer()
    pipeline = QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=make_vae(),
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        processor=None,
        transformer=make_transformer(zero_cond_t),
    )
    pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def write_configurations(folder: Path, pipeline: str = "QwenImagePipeline") -> Path:
    """The published ones, and a small tokenizer."""
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage()
    files = {
        "model_index.json": {"_class_name": pipeline},
        "scheduler/scheduler_config.json": SCHEDULER,
        "text_encoder/config.json": QWEN_7B | {"model_type": "qwen2_5_vl", "vision_config": VISION_7B},
        "transformer/config.json": TRANSFORMER_20B,
        "vae/config.json": dict(vae.config),
    }
    for name, values in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def make_text_encoder(tokenizer: Any) -> Qwen2_5_VLForConditionalGeneration:
    ids = tokenizer.get_vocab()
    heads = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    text = {"hidden_size": HIDDEN, "intermediate_size": 96, "rope_parameters": rope, "rms_norm_eps": 1e-6}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": HIDDEN}
    config = Qwen2_5_VLConfig(
        text_config=text | heads | {"max_position_embeddings": 128000, "tie_word_embeddings": False},
        vision_config=vision | {"patch_size": 14, "fullatt_block_indexes": [1]},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    return randomise(Qwen2_5_VLForConditionalGeneration(config), seed=1)


def make_vae() -> AutoencoderKLQwenImage:
    return randomise(AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1), seed=2)


def make_transformer(zero_cond_t: bool = False) -> QwenImageTransformer2DModel:
    transformer = QwenImageTransformer2DModel(
        num_layers=3,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=HIDDEN,
        axes_dims_rope=(8, 12, 12),
        zero_cond_t=zero_cond_t,
    )
    return randomise(transformer, seed=3)
