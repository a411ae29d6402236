"""FLUX.2 klein's text encoder: three layers' outputs of a Qwen3 that is never run to its end."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model, Qwen3RotaryEmbedding

from lightx2v.core import GenerateRequest
from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.component import TextEncoder
from lightx2v.models.configuration import read_configuration, require
from lightx2v.models.flux2.recipe import MAX_TOKENS, read_recipe

TAPS = (9, 18, 27)
"""The conditioning is the output of so many layers, none of them normalised."""

HIDDEN_WIDTHS, FEED_FORWARD_WIDTHS, ATTENTION_WIDTHS = 6, 3, 7
MARGIN = 1.15

EMBEDDING = "embed_tokens.weight"


class Flux2TextEncoder(TextEncoder):
    host_tensors = frozenset({EMBEDDING})
    unreachable = frozenset({"norm.weight"})
    module: Qwen3Model

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.config = _read_config(checkpoint)
        self.module = _build(self.config, dtype)
        self.blocks = tuple(f"layers.{index}" for index in range(len(self.module.layers)))
        self.distilled = read_recipe(checkpoint).distilled
        self.tokenizer = _read_tokenizer(checkpoint)
        self.max_tokens = min(MAX_TOKENS, self.tokenizer.model_max_length)

    def source(self, name: str) -> str:
        return f"model.{name}"

    def is_guided(self, request: GenerateRequest) -> bool:
        return request.guidance > 1 and not self.distilled

    def workspace(self, request: GenerateRequest) -> int:
        """Per token: the stream and the taps in hidden widths, and a layer's feed-forward or its attention."""
        config = self.config
        attention = ATTENTION_WIDTHS * config.num_attention_heads * config.head_dim
        layer = max(FEED_FORWARD_WIDTHS * config.intermediate_size, attention)
        values = self.max_tokens * (HIDDEN_WIDTHS * config.hidden_size + layer)
        return int(MARGIN * (values * self.dtype.itemsize + self.max_tokens**2))

    @torch.no_grad()
    def encode(self, prompt: str, device: torch.device) -> torch.Tensor:
        ids, real = self._tokenise(prompt)
        states = F.embedding(ids, self.module.embed_tokens.weight).to(device)
        positions = torch.arange(ids.shape[1], device=device)[None]
        rope = self.module.rotary_emb(states, positions)
        mask = _mask(real).to(device)
        taps = []
        for depth, layer in enumerate(self.module.layers, start=1):
            states = layer(states, attention_mask=mask, position_ids=positions, position_embeddings=rope)
            if depth in TAPS:
                taps.append(states)
        return torch.cat(taps, dim=-1)[0]

    def _tokenise(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, tokens] each, on the host: ids, and whether they are the prompt's or padding."""
        messages = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        tokens = self.tokenizer(
            text,
            return_tensors="pt",
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=self.max_tokens,
        )
        return tokens["input_ids"], tokens["attention_mask"].bool()


def _mask(real: torch.Tensor) -> torch.Tensor:
    """[1, 1, tokens, tokens]: each token sees the real ones before it; padding sees all real ones, and no padding."""
    tokens = real.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return causal & real[:, None, None, :]


def _read_config(checkpoint: Path) -> Qwen3Config:
    """The configuration, cut to the layers up to the last tap."""
    values, file = read_configuration(checkpoint, "text_encoder/config.json"), checkpoint / "text_encoder/config.json"
    layers = require(values, "num_hidden_layers", file)
    if layers < TAPS[-1]:
        raise InvalidCheckpoint(f"{file}: {layers} layers, but the conditioning is taken from layers {TAPS}")
    cut = values | {"num_hidden_layers": TAPS[-1]}
    if values.get("layer_types"):
        cut["layer_types"] = values["layer_types"][: TAPS[-1]]
    config = Qwen3Config.from_dict(cut)
    config._attn_implementation = "sdpa"
    return config


def _build(config: Qwen3Config, dtype: torch.dtype) -> Qwen3Model:
    with torch.device("meta"):
        module = Qwen3Model(config).to(dtype).eval().requires_grad_(False)
    module.rotary_emb = Qwen3RotaryEmbedding(config)
    return module


def _read_tokenizer(checkpoint: Path) -> AutoTokenizer:
    folder = checkpoint / "tokenizer"
    if not folder.is_dir():
        raise InvalidCheckpoint(f"{folder}: no such folder; the checkpoint is incomplete")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(f"{folder}: the tokenizer cannot be read ({error})") from error
