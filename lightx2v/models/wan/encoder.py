"""Wan's text encoder: the encoder half of a umT5, every layer with a position bias of its own; beside it, where a
checkpoint has one, the image encoder."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import ftfy
import torch
import torch.nn.functional as F
from transformers import UMT5Config
from transformers.models.umt5.modeling_umt5 import UMT5Stack

from lightx2v.models.component import TextEncoder, on_meta
from lightx2v.models.configuration import read_configuration
from lightx2v.models.language import CONFIG, EMBEDDING, count, read_tokenizer
from lightx2v.models.visits import Pause, Visits
from lightx2v.models.wan.names import TEXT_ENCODER
from lightx2v.models.wan.spec import MAX_TOKENS, WanSpec
from lightx2v.models.wan.variant import IMAGE_ENCODER
from lightx2v.models.wan.vision import build_vision, see
from lightx2v.types import GenerateRequest, Picture
from lightx2v.weights.layout import WeightMap

VISION = "vision"
"""The name of the image encoder within the module."""

UNREAD: tuple[str, ...] = (
    r"encoder\.embed_tokens\.weight",
    r"decoder\..*",
    r"lm_head\.weight",
    r"vision_model\.(embeddings\.position_ids|post_layernorm\..*)",
    r"(visual_projection|text_projection)\.weight",
    r"text_model\..*",
)
"""Tensors of a whole umT5, whose embeddings may be there twice, and of a whole CLIP."""

FEED_FORWARD_WIDTHS, BIAS_WIDTHS, MARGIN = 3, 2, 1.15
"""Live values at the peak of a layer: inner widths for each token, or position biases for each pair of tokens and each
head."""


class WanTextEncoder(TextEncoder):
    """A umT5 that computes only a prompt's own tokens: attention never sees padding, and the transformer sees zeros in
    its place.

    The image encoder is a part of the module but none of its blocks. It is used once in a run, whatever the number of
    prompts, and stays throughout.
    """

    names = TEXT_ENCODER
    max_tokens = MAX_TOKENS
    module: UMT5Stack
    spec: WanSpec

    def __init__(self, checkpoint: Path, dtype: torch.dtype, spec: WanSpec) -> None:
        super().__init__(dtype, spec)
        self.config = _read_config(checkpoint)
        self.module = on_meta(lambda: UMT5Stack(self.config), dtype)
        blocks = tuple(f"block.{index}" for index in range(self.config.num_layers))
        unread = UNREAD
        self.sees = self.spec.image_encoder is not None
        if self.sees:
            self.module.add_module(VISION, build_vision(checkpoint, dtype))
            last = self.module.vision.config.num_hidden_layers
            unread = (*unread, rf"vision_model\.encoder\.layers\.{last}\..*")
        folders = (self.folder, IMAGE_ENCODER) if self.sees else (self.folder,)
        self.weights = WeightMap(folders, blocks, frozenset({EMBEDDING}), source=_source, unread=unread)
        self.tokenizer = read_tokenizer(checkpoint)

    def activation_bytes(self, request: GenerateRequest) -> int:
        """Bytes for the longest prompt, since a picture takes less: the stream, and the feed-forward layer or the
        attention of one layer."""
        config = self.config
        feed_forward = MAX_TOKENS * FEED_FORWARD_WIDTHS * config.d_ff
        attention = MAX_TOKENS * (4 * config.num_heads * config.d_kv + BIAS_WIDTHS * MAX_TOKENS * config.num_heads)
        stream = MAX_TOKENS * 2 * config.d_model
        return int(MARGIN * (stream + max(feed_forward, attention)) * self.dtype.itemsize)

    def member_bytes(self, request: GenerateRequest) -> int:
        """The stream of the longest prompt. Every layer makes its own biases."""
        return MAX_TOKENS * self.config.d_model * self.dtype.itemsize

    def count_tokens(self, prompt: str, pictures: int) -> int:
        return count(self.tokenizer, clean(prompt))

    @torch.no_grad()
    def encode(self, prompt: str, pictures: Sequence[Picture], device: torch.device) -> Visits[torch.Tensor]:
        """[tokens, features] of the prompt, its end token included."""
        ids = self.tokenizer(clean(prompt), return_tensors="pt", truncation=True, max_length=MAX_TOKENS)["input_ids"]
        states = F.embedding(ids, self.module.embed_tokens.weight).to(device)
        for block in self.module.block:
            yield Pause.BLOCK
            states = block(states)
        features: torch.Tensor = self.module.final_layer_norm(states)[0]
        return features

    @torch.no_grad()
    def look(self, pictures: Sequence[Picture], device: torch.device) -> torch.Tensor | None:
        return see(self.module.vision, pictures, device) if self.sees else None


def clean(prompt: str) -> str:
    """The prompt with broken encodings mended, HTML escapes resolved, and single spaces between words."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def _source(name: str) -> str:
    """The checkpoint's name of a state, in the folder of its encoder."""
    part, _, rest = name.partition(".")
    if part == VISION:
        return f"vision_model.{rest}"
    return "shared.weight" if name == EMBEDDING else f"encoder.{name}"


def _read_config(checkpoint: Path) -> UMT5Config:
    config = UMT5Config.from_dict(read_configuration(checkpoint, CONFIG))
    config.use_cache = config.is_encoder_decoder = False
    config._attn_implementation = "sdpa"
    return config
