"""Tiny random checkpoints in the diffusers layout, written by diffusers and transformers themselves.

Every norm, bias and statistic is random, so that a tensor that is not loaded, or loaded to the wrong place, shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.checkpoint import SCHEDULER, make_tokenizer

Module = TypeVar("Module", bound=nn.Module)

HIDDEN = 32
"""Of the text encoder; its heads together are twice as wide."""


def write_klein(
    folder: Path,
    *,
    distilled: bool = True,
    sample_size: int = 64,
    max_shard_size: str = "5GB",
    tied: bool = True,
    feed_forward: int = 2 * HIDDEN,
) -> Path:
    """A FLUX.2-klein checkpoint of 1.3 million parameters with Qwen3's real depth. The same bytes at every call."""
    tokenizer = make_tokenizer()
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=make_vae(sample_size),
        text_encoder=make_text_encoder(len(tokenizer), tied, feed_forward),
        tokenizer=tokenizer,
        transformer=make_transformer(),
        is_distilled=distilled,
    )
    pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def make_text_encoder(vocabulary: int, tied: bool = True, feed_forward: int = 2 * HIDDEN) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        hidden_size=HIDDEN,
        intermediate_size=feed_forward,
        num_hidden_layers=36,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=vocabulary,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=tied,
        attention_bias=False,
    )
    return randomise(Qwen3ForCausalLM(config), seed=1)


def make_vae(sample_size: int = 64) -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=sample_size,
    )
    return randomise(vae, seed=2)


def make_transformer(guidance_embeds: bool = False) -> Flux2Transformer2DModel:
    transformer = Flux2Transformer2DModel(
        in_channels=32,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=3 * HIDDEN,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=guidance_embeds,
    )
    return randomise(transformer, seed=3)


@torch.no_grad()
def randomise(module: Module, seed: int) -> Module:
    """Random values for every parameter and statistic, of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("embed_tokens.weight"):
            parameter.copy_(0.5 * noise)
        elif parameter.dim() == 1:
            is_norm = "norm" in name and name.endswith("weight")
            parameter.copy_(float(is_norm) + 0.1 * noise)
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module.eval()
