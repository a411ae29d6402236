"""The three networks and the tokenizer: FLUX.2's classes at a small size, and a smaller one for smoke tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

TAPS = (9, 18, 27)
MAX_TOKENS = 64
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
"""What the chat template renders for one user message."""
TEMPLATE_WORDS = ("user", "assistant", "\n\n")
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)


@dataclass(frozen=True, slots=True)
class Widths:
    vae: tuple[int, int, int, int] = (32, 64, 128, 128)
    latent: int = 16
    encoder: int = 96
    heads: int = 8
    double_blocks: int = 2
    single_blocks: int = 6


SMALL = Widths()
SMOKE = Widths(vae=(8, 8, 16, 16), latent=4, encoder=16, heads=2, double_blocks=1, single_blocks=1)


@dataclass(slots=True)
class Networks:
    vae: AutoencoderKLFlux2
    encoder: Qwen3ForCausalLM
    transformer: Flux2Transformer2DModel
    tokenizer: Qwen2Tokenizer

    def to(self, device: torch.device | str) -> Networks:
        for network in (self.vae, self.encoder, self.transformer):
            network.to(device)
        return self


def build(widths: Widths, corpus: Iterable[str]) -> Networks:
    tokenizer = _tokenizer(corpus)
    return Networks(_vae(widths), _encoder(widths, len(tokenizer)), _transformer(widths), tokenizer)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
        time_shift_type="exponential",
    )


def _tokenizer(corpus: Iterable[str]) -> Qwen2Tokenizer:
    """Qwen's: byte-level pairs, trained here on the captions, then Qwen's special tokens."""
    bytes_first = Tokenizer(models.BPE())
    bytes_first.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    bytes_first.train_from_iterator(chain(corpus, TEMPLATE_WORDS * 1000), trainer)
    model = json.loads(bytes_first.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL),
        model_max_length=MAX_TOKENS,
    )
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in ("<think>", "</think>")])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _vae(widths: Widths) -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        block_out_channels=widths.vae,
        layers_per_block=1,
        latent_channels=widths.latent,
        norm_num_groups=8,
        sample_size=128,
    )


def _encoder(widths: Widths, vocabulary: int) -> Qwen3ForCausalLM:
    """The last of the 28 layers is there, as in the published encoders, and as there no tap reaches it.

    Every layer starts as the identity, so the taps start as the words themselves.
    """
    encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=widths.encoder,
            intermediate_size=widths.encoder * 8 // 3,
            num_hidden_layers=TAPS[-1] + 1,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=40960,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            tie_word_embeddings=True,
            attention_bias=False,
            initializer_range=0.06,
        )
    )
    nn.init.normal_(encoder.model.embed_tokens.weight, std=1.0)
    for layer in encoder.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return encoder


def _transformer(widths: Widths) -> Flux2Transformer2DModel:
    """Modulation and output start at zero, so every block starts as the identity."""
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4 * widths.latent,
        num_layers=widths.double_blocks,
        num_single_layers=widths.single_blocks,
        attention_head_dim=32,
        num_attention_heads=widths.heads,
        joint_attention_dim=len(TAPS) * widths.encoder,
        timestep_guidance_channels=256,
        mlp_ratio=3.0,
        axes_dims_rope=(8, 8, 8, 8),
        rope_theta=2000,
        guidance_embeds=False,
    )
    for name, parameter in transformer.named_parameters():
        if "modulation" in name or name.startswith(("norm_out", "proj_out")):
            nn.init.zeros_(parameter)
    return transformer
