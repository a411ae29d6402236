"""Tiny random checkpoints of FLUX.2, written by diffusers and transformers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from benchmarks.checkpoint.flux2 import SCHEDULER, TRANSFORMER, VAE, write_configurations
from benchmarks.checkpoint.shape import Shape
from benchmarks.checkpoint.tokenizer import make_tokenizer, train_bpe
from tests.checkpoints.randomise import randomise

HIDDEN = 32
"""Of the text encoder; its heads together are twice as wide."""

CONTROL_TOKENS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""Mistral's, in the order of their ids."""

MISTRAL_TEMPLATE = (
    "{{- bos_token }}{%- for m in messages %}"
    "{%- if m.role == 'system' %}{{- '[SYSTEM_PROMPT]' + m.content[0].text + '[/SYSTEM_PROMPT]' }}"
    "{%- else %}{{- '[INST]' + m.content[0].text + '[/INST]' }}{%- endif %}{%- endfor %}"
)
"""Renders a system message and a user's as Mistral's own template does."""

MISTRAL_24B: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 131072,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e9,
    "sliding_window": None,
}


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


def write_dev(folder: Path, *, sample_size: int = 64, max_shard_size: str = "5GB") -> Path:
    """A FLUX.2-dev checkpoint of 1.4 million parameters with Mistral's real depth. The same bytes at every call."""
    tokenizer = make_mistral_tokenizer()
    pipeline = Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=make_vae(sample_size),
        text_encoder=make_mistral(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=make_transformer(guidance_embeds=True),
    )
    pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
    _declare_processor(folder)
    return folder


def write_dev_configurations(folder: Path) -> None:
    """The published ones, and a small tokenizer."""
    layers = {"num_layers": 8, "num_single_layers": 48, "num_attention_heads": 48}
    dev = {"joint_attention_dim": 3 * MISTRAL_24B["hidden_size"]}
    transformer = TRANSFORMER | layers | dev
    del transformer["guidance_embeds"]
    write_configurations(folder, Shape(transformer, {}, VAE), distilled=False)
    text_encoder = {"model_type": "mistral3", "text_config": MISTRAL_24B}
    (folder / "text_encoder/config.json").write_text(json.dumps(text_encoder))
    make_mistral_tokenizer().save_pretrained(folder / "tokenizer")
    _declare_processor(folder)


def _declare_processor(folder: Path) -> None:
    """As published: a processor for pictures and text, around the tokenizer."""
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "Flux2Pipeline", "tokenizer": ["transformers", "PixtralProcessor"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    processor = {"processor_class": "PixtralProcessor", "patch_size": 14, "spatial_merge_size": 2}
    (folder / "tokenizer/processor_config.json").write_text(json.dumps(processor))


def make_mistral_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(500, CONTROL_TOKENS),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=131072,
        extra_special_tokens=list(CONTROL_TOKENS[3:]),
        chat_template=MISTRAL_TEMPLATE,
    )


def make_mistral(vocabulary: int) -> Mistral3ForConditionalGeneration:
    widths: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocabulary}
    vision = widths | {"model_type": "pixtral", "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56}
    config = Mistral3Config(
        text_config=MISTRAL_24B | widths | heads, vision_config=vision | {"patch_size": 14}, tie_word_embeddings=False
    )
    return randomise(Mistral3ForConditionalGeneration(config), seed=1)


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
