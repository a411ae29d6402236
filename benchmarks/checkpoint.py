"""Writes a checkpoint of random weights in the diffusers layout, of any published size, as fast as the disk takes it.

    python -m benchmarks.checkpoint FOLDER --model klein-9b

Speed and memory do not depend on what the weights are; activations stay finite.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from lightx2v.models.flux2.transformer import Flux2Transformer, read_shape

SHARD_NBYTES = 5_000_000_000
NOISE_VALUES = 4_194_301
"""So many random values are drawn once, a prime, and every tensor is cut from them, at an offset of its own."""

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
SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
CHAT_TEMPLATE = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
"""Renders one user's message as Qwen3's own template does."""

CORPUS = (
    "a red circle left of a blue square on white, a green triangle above a yellow star",
    "make the triangle yellow, remove the square, put the object of image 1 left of the object of image 2",
    "a photograph of a cat that holds a sign which says hello world, in the style of an oil painting",
    "user\nassistant\nsystem\n",
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What differs between the sizes: values of the three configurations."""

    transformer: dict[str, Any]
    text_encoder: dict[str, Any]
    vae: dict[str, Any]


def _klein(double: int, single: int, heads: int, hidden: int, intermediate: int, tied: bool) -> Shape:
    layers = {"num_layers": double, "num_single_layers": single, "num_attention_heads": heads}
    widths = {"hidden_size": hidden, "intermediate_size": intermediate, "tie_word_embeddings": tied}
    return Shape(TRANSFORMER | layers | {"joint_attention_dim": 3 * hidden}, TEXT_ENCODER | widths, VAE)


SHAPES = {
    "klein-4b": _klein(double=5, single=20, heads=24, hidden=2560, intermediate=9728, tied=True),
    "klein-9b": _klein(double=8, single=24, heads=32, hidden=4096, intermediate=12288, tied=False),
}


def write_checkpoint(folder: Path, shape: Shape, *, distilled: bool = True, shard_nbytes: int = SHARD_NBYTES) -> None:
    """Writes all of `shape` under `folder`, in bf16, in files of at most about `shard_nbytes`."""
    write_configurations(folder, shape, distilled)
    make_tokenizer().save_pretrained(folder / "tokenizer")
    with torch.device("meta"):
        text_encoder = Qwen3ForCausalLM(Qwen3Config(**shape.text_encoder))
        transformer, vae = Flux2Transformer(read_shape(folder)), AutoencoderKLFlux2.from_config(shape.vae)
    with ThreadPoolExecutor() as pool:
        written = [
            *_write_weights(pool, folder / "text_encoder", "model", text_encoder, shard_nbytes),
            *_write_weights(pool, folder / "transformer", "diffusion_pytorch_model", transformer, shard_nbytes),
            *_write_weights(pool, folder / "vae", "diffusion_pytorch_model", vae, shard_nbytes),
        ]
    for future in written:
        future.result()


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
    _write_json(folder / "model_index.json", index | ({"is_distilled": True} if distilled else {}))
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler"} | SCHEDULER
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(folder / "transformer" / "config.json", shape.transformer)
    _write_json(folder / "text_encoder" / "config.json", Qwen3Config(**shape.text_encoder).to_dict())
    _write_json(folder / "vae" / "config.json", {"_class_name": "AutoencoderKLFlux2"} | shape.vae)


def _write_weights(
    pool: ThreadPoolExecutor, folder: Path, stem: str, module: nn.Module, shard_nbytes: int
) -> list[Any]:
    tied = getattr(module, "_tied_weights_keys", None) or {}
    is_tied = getattr(getattr(module, "config", None), "tie_word_embeddings", False)
    states = {name: meta for name, meta in module.state_dict().items() if not (is_tied and name in tied)}
    shards = list(_split(states, shard_nbytes))
    if len(shards) == 1:
        return [pool.submit(_write_file, folder / f"{stem}.safetensors", shards[0])]
    files = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": sum(map(_nbytes, states.values()))}, "weight_map": weight_map}
    _write_json(folder / f"{stem}.safetensors.index.json", index)
    return [pool.submit(_write_file, folder / file, shard) for file, shard in zip(files, shards, strict=True)]


def _split(states: dict[str, torch.Tensor], shard_nbytes: int) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    for name, meta in states.items():
        if shard and sum(map(_nbytes, shard.values())) + _nbytes(meta) > shard_nbytes:
            yield shard
            shard = {}
        shard[name] = meta
    yield shard


def _write_file(path: Path, states: dict[str, torch.Tensor]) -> None:
    header, offset = {}, 0
    for name, meta in states.items():
        dtype = "BF16" if meta.is_floating_point() else "I64"
        header[name] = {"dtype": dtype, "shape": list(meta.shape), "data_offsets": [offset, offset + _nbytes(meta)]}
        offset += _nbytes(meta)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, (name, meta) in enumerate(states.items()):
            for piece in _values(name, meta, start=number * 7919):
                file.write(piece)


def _values(name: str, meta: torch.Tensor, start: int) -> Iterator[memoryview]:
    """The bytes of one tensor, in pieces of a buffer that is shared by all: noise, or a constant."""
    source = _source(name, meta)
    left, offset = _nbytes(meta), 2 * start % source.nbytes if meta.dim() > 1 else 0
    while left:
        piece = source[offset : offset + left]
        yield piece
        left, offset = left - piece.nbytes, 0


def _source(name: str, meta: torch.Tensor) -> memoryview:
    if not meta.is_floating_point():
        return memoryview(bytes(_nbytes(meta)))
    if meta.dim() > 1:
        return _noise(1 / math.sqrt(meta[0].numel()))
    is_one = name.endswith("running_var") or ("norm" in name and name.endswith("weight"))
    return _bytes(torch.full(meta.shape, float(is_one)))


@cache
def _noise(scale: float) -> memoryview:
    return _bytes(_unit_noise() * scale)


@cache
def _unit_noise() -> torch.Tensor:
    return torch.randn(NOISE_VALUES, generator=torch.Generator().manual_seed(0))


def _bytes(values: torch.Tensor) -> memoryview:
    return values.to(torch.bfloat16).view(torch.uint8).numpy().data


def _nbytes(meta: torch.Tensor) -> int:
    return meta.numel() * (2 if meta.is_floating_point() else 8)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")


def make_tokenizer(vocabulary: int = 480) -> Qwen2Tokenizer:
    """A byte-level BPE with Qwen's special tokens, trained on a few lines. The same at every call."""
    trained = json.loads(train_bpe(vocabulary).to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=SPECIAL_TOKENS,
        model_max_length=131072,
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def train_bpe(vocabulary: int, special_tokens: Sequence[str] = ()) -> Tokenizer:
    """`vocabulary` tokens, of which `special_tokens` are the first."""
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return bpe


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a checkpoint of random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=sorted(SHAPES), default="klein-9b")
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, SHAPES[arguments.model])


if __name__ == "__main__":
    main()
