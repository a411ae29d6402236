"""Tiny random checkpoints of Wan, written by diffusers and transformers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.checkpoints.randomise import randomise

BOUNDARY, I2V_BOUNDARY = 0.875, 0.9
"""Of the noise levels, between two experts."""

EXPERT_WIDTH = 6144
"""Of their feed-forward layers: two are as large as all else together."""

FEATURES = 32
"""Of the text encoder; its heads together are twice as wide."""

WORDS = ("a", "red", "circle", "left", "of", "blue", "square", "on", "white", "blurry", "the")
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"-()<>&"

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}
UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
}
TRANSFORMER: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "eps": 1e-6,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 1024,
}
SIZES: dict[str, dict[str, Any]] = {
    "1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
    "ti2v-5b": {
        "num_attention_heads": 24,
        "ffn_dim": 14336,
        "num_layers": 30,
        "in_channels": 48,
        "out_channels": 48,
    },
}
SIZES |= {"a14b": SIZES["14b"], "i2v-a14b": SIZES["14b"] | {"in_channels": 36}}
SIZES["i2v-14b"] = SIZES["i2v-a14b"] | {"image_dim": 1280, "added_kv_proj_dim": 5120}
CLIP: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}
VAE: dict[str, Any] = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}
VAE_22: dict[str, Any] = VAE | {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}


def write_wan(folder: Path, *, experts: int = 1, max_shard_size: str = "5GB") -> Path:
    """A Wan 2.1 checkpoint of 0.8 million parameters, or a Wan 2.2. The same bytes at every call."""
    pipeline = WanPipeline(**_parts(), **_experts(experts, BOUNDARY), vae=make_vae())
    return _save(pipeline, folder, "64x48", max_shard_size)


def write_wan_i2v(folder: Path, *, experts: int = 1) -> Path:
    """Of a picture to video, without an image encoder."""
    parts = _parts() | {"vae": make_vae(), "image_encoder": None, "image_processor": None}
    pipeline = WanImageToVideoPipeline(**parts, **_experts(experts, I2V_BOUNDARY, in_channels=36))
    return _save(pipeline, folder, "64x48")


def write_wan_clip(folder: Path) -> Path:
    """Of a picture to video, with an image encoder, whose states have the names of the published checkpoints."""
    shape = {"in_channels": 36, "image_dim": FEATURES, "added_kv_proj_dim": 56}
    parts = _parts() | {"image_encoder": make_image_encoder(), "image_processor": CLIPImageProcessorPil()}
    pipeline = WanImageToVideoPipeline(**parts, vae=make_vae(), transformer=make_transformer(**shape))
    _save(pipeline, folder, "64x48")
    file = folder / "image_encoder/model.safetensors"
    states = {f"vision_model.{name}": state for name, state in load_file(file).items()}
    save_file(states, file, metadata={"format": "pt"})
    return folder


def write_wan_ti2v(folder: Path) -> Path:
    """Of text, or a picture, to video: a timestep per token, and the autoencoder of Wan 2.2."""
    vae = make_vae(**VAE_22 | {"base_dim": 12, "decoder_base_dim": 8, "num_res_blocks": 1, "z_dim": 16})
    pipeline = WanPipeline(**_parts(), vae=vae, transformer=make_transformer(), expand_timesteps=True)
    return _save(pipeline, folder, "64x64")


def _parts() -> dict[str, Any]:
    """What is the same in all."""
    tokenizer = make_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": make_text_encoder(len(tokenizer)),
        "scheduler": UniPCMultistepScheduler(**SCHEDULER),
    }


def _experts(count: int, boundary: float, **shape: Any) -> dict[str, Any]:
    if count == 1:
        return {"transformer": make_transformer(**shape)}
    return {
        "transformer": make_transformer(EXPERT_WIDTH, **shape),
        "transformer_2": make_transformer(EXPERT_WIDTH, seed=4, **shape),
        "boundary_ratio": boundary,
    }


def _save(pipeline: DiffusionPipeline, folder: Path, size: str, max_shard_size: str = "5GB") -> Path:
    pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
    defaults = {"size": size, "num_frames": 9, "num_inference_steps": 4}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return folder


def write_configurations(folder: Path, size: str) -> Path:
    """The published ones, and a small tokenizer."""
    of_picture, experts, expands = size.startswith("i2v"), size.endswith("a14b"), size == "ti2v-5b"
    boundary = I2V_BOUNDARY if of_picture else BOUNDARY
    statistics = {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
    index = {
        "_class_name": "WanImageToVideoPipeline" if of_picture else "WanPipeline",
        "transformer_2": ["diffusers", "WanTransformer3DModel"] if experts else [None, None],
        "image_encoder": ["transformers", "CLIPVisionModel"] if size == "i2v-14b" else [None, None],
        "boundary_ratio": boundary if experts else None,
        "expand_timesteps": expands,
    }
    configurations = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": {"_class_name": "UniPCMultistepScheduler"} | SCHEDULER,
        "text_encoder/config.json": UMT5_XXL,
        "transformer/config.json": TRANSFORMER | SIZES[size],
        "vae/config.json": VAE_22 | statistics if expands else VAE,
    }
    if size == "i2v-14b":
        configurations["image_encoder/config.json"] = CLIP
    if experts:
        configurations["transformer_2/config.json"] = configurations["transformer/config.json"]
    for name, values in configurations.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def make_tokenizer() -> T5TokenizerFast:
    control = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = [(f"▁{word}", -3.0) for word in WORDS]
    characters = [(character, -8.0) for character in CHARACTERS]
    return T5TokenizerFast(vocab=[*control, *words, *characters], extra_ids=0, model_max_length=512)


def make_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    widths = {"vocab_size": vocabulary, "d_model": FEATURES, "d_kv": 16, "d_ff": 64, "num_layers": 3, "num_heads": 4}
    return randomise(UMT5EncoderModel(UMT5Config(**UMT5_XXL | widths)), seed=1)


def make_image_encoder() -> CLIPVisionModel:
    widths = {"hidden_size": FEATURES, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return randomise(CLIPVisionModel(CLIPVisionConfig(**CLIP | widths)), seed=5)


def make_vae(**shape: Any) -> AutoencoderKLWan:
    return randomise(AutoencoderKLWan(**VAE | {"base_dim": 8, "num_res_blocks": 1} | shape), seed=2)


def make_transformer(feed_forward: int = 96, seed: int = 3, **shape: Any) -> WanTransformer3DModel:
    widths = {"num_attention_heads": 2, "attention_head_dim": 28, "num_layers": 3, "text_dim": FEATURES}
    return randomise(WanTransformer3DModel(**TRANSFORMER | widths | shape, ffn_dim=feed_forward), seed=seed)
