"""Text encoders that are a language model, cut after the last layer that is read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.component import TextEncoder, on_meta
from lightx2v.models.configuration import read_configuration, require
from lightx2v.models.spec import ModelSpec
from lightx2v.models.visits import Pause, Visits
from lightx2v.types import GenerateRequest
from lightx2v.weights.layout import WeightMap

FEED_FORWARD_WIDTHS, ATTENTION_WIDTHS = 3, 7
MARGIN = 1.15

CONFIG = "text_encoder/config.json"
EMBEDDING = "embed_tokens.weight"


class LanguageEncoder(TextEncoder):
    """A subclass says which language model it is, how deep it is read and how it is prompted."""

    language_model: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[PreTrainedConfig]]
    prefix: ClassVar[str]
    """The prefix of its states in the checkpoint."""
    limit: ClassVar[int]
    """Tokens to which a prompt is cut, those of its template included."""
    kept_widths: ClassVar[int]
    """Hidden widths per token that are alive beside those of a layer: the stream, and what is returned."""
    held_widths: ClassVar[int] = 1
    """Those that are alive between two layers."""

    unread: ClassVar[tuple[str, ...]] = (r"lm_head\.weight",)
    """Tensors beside the language model that checkpoints have, as regular expressions."""
    unreachable: ClassVar[frozenset[str]] = frozenset({"norm.weight"})
    """States that no forward pass reads: the last layer's norm, unless a subclass reads it."""
    module: PreTrainedModel

    def __init__(self, checkpoint: Path, dtype: torch.dtype, spec: ModelSpec) -> None:
        super().__init__(dtype, spec)
        self.config, layers = self._read_config(checkpoint)
        self.module = self._build()
        blocks = tuple(f"layers.{index}" for index in range(self.config.num_hidden_layers))
        self.weights = WeightMap(
            (self.folder,),
            blocks,
            frozenset({EMBEDDING}),
            self.unreachable,
            source=lambda name: f"{self.prefix}{name}",
            unread=(*self.unread, *(rf"layers\.{index}\..*" for index in range(len(blocks), layers))),
        )
        self.tokenizer = read_tokenizer(checkpoint)
        self.max_tokens = min(self.limit, self.tokenizer.model_max_length)

    def activation_bytes(self, request: GenerateRequest) -> int:
        """Bytes for the longest prompt: what is kept of each token, and the feed-forward layer or the attention of one
        layer."""
        config, tokens = self.config, self.tokens(request)
        attention = ATTENTION_WIDTHS * config.num_attention_heads * self.head_dim
        layer = max(FEED_FORWARD_WIDTHS * config.intermediate_size, attention)
        values = tokens * (self.kept_widths * config.hidden_size + layer)
        return int(MARGIN * (values * self.dtype.itemsize + tokens**2))

    def member_bytes(self, request: GenerateRequest) -> int:
        """Bytes for the longest prompt: the states of each token, its angles and the mask. A token of padding may be
        beside them."""
        tokens = self.tokens(request) + 1
        values = tokens * (self.held_widths * self.config.hidden_size + 2 * self.head_dim)
        return values * self.dtype.itemsize + tokens**2

    @property
    def head_dim(self) -> int:
        """The width of one head of attention."""
        config = self.config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    def tokens(self, request: GenerateRequest) -> int:
        """How many tokens a prompt has at most."""
        return self.max_tokens

    @abstractmethod
    def depth(self, layers: int) -> int:
        """How many of `layers` are read; a larger number if the model is too shallow."""

    def states(
        self, ids: torch.Tensor, real: torch.Tensor, device: torch.device, taps: Collection[int], first: int = 0
    ) -> Visits[list[torch.Tensor]]:
        """[1, tokens, hidden] after each of the layers whose numbers, from 1, are `taps`; none of them normalised.

        `ids`, `real`: [1, tokens] on the host: the tokens, and whether they are the prompt's or padding. The first of
        them has the position `first`.
        """
        positions = torch.arange(first, first + ids.shape[1])[None]
        return self.through_layers(self.embedded(ids).to(device), positions, real, taps)

    def last_state(self, text: str, device: torch.device) -> Visits[torch.Tensor]:
        """[1, tokens, hidden] after the last layer, of `text` cut to `max_tokens`, without padding."""
        ids = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=self.max_tokens)["input_ids"]
        (state,) = yield from self.states(ids, torch.ones_like(ids, dtype=torch.bool), device, (self.last,))
        return state

    @property
    def last(self) -> int:
        """The number of the last layer that is read."""
        return int(self.config.num_hidden_layers)

    def embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """[1, tokens, hidden]: the embedding of `ids`, on the host as they are."""
        return F.embedding(ids, self.module.embed_tokens.weight)

    def through_layers(
        self, states: torch.Tensor, positions: torch.Tensor, real: torch.Tensor, taps: Collection[int]
    ) -> Visits[list[torch.Tensor]]:
        """The states after the layers `taps`, as `states` returns them, for embedded tokens `states`. On the host:
        `positions`, and whether a token is the prompt's (`real`)."""
        rope = self.module.rotary_emb(states, positions)
        mask, kept = _mask(real).to(states.device), []
        for number, layer in enumerate(self.module.layers, start=1):
            yield Pause.BLOCK
            states = layer(states, attention_mask=mask, position_embeddings=rope)
            if number in taps:
                kept.append(states)
        return kept

    def language_config(self, values: dict[str, Any], file: Path) -> dict[str, Any]:
        """The language model's part of the text encoder's configuration."""
        return values

    def _read_config(self, checkpoint: Path) -> tuple[PreTrainedConfig, int]:
        """The configuration, cut to the layers that are read, and the number of all layers."""
        file = checkpoint / CONFIG
        values = self.language_config(read_configuration(checkpoint, CONFIG), file)
        layers = require(values, "num_hidden_layers", file)
        depth = self.depth(layers)
        if layers < depth:
            raise InvalidCheckpoint(f"{file}: {layers} layers, but the conditioning is taken from layer {depth}")
        cut = values | {"num_hidden_layers": depth}
        if values.get("layer_types"):
            cut["layer_types"] = values["layer_types"][:depth]
        config = self.config_class.from_dict(cut)
        config._attn_implementation = "sdpa"
        return config, layers

    def _build(self) -> PreTrainedModel:
        """The model on the meta device, its rotary frequencies on the host."""
        module = on_meta(lambda: self.language_model(self.config), self.dtype)
        module.rotary_emb = HostRotary(type(module.rotary_emb)(self.config))
        return module


class HostRotary(nn.Module):
    """A rotary embedding of transformers' on the host. No checkpoint holds its frequencies, so nothing would move them.
    Some versions take them to where the states are, others do not."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self._rotary = rotary

    def forward(self, states: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cosines and sines where `states` are; `positions` are on the host."""
        turns = self._rotary(states.new_empty(0, device="cpu"), positions)
        return tuple(turn.to(states.device) for turn in turns)


def chat(tokenizer: Any, prompt: str, *, thinking: bool) -> str:
    """A user's message in the words of the model's own template, up to the begin of the answer. Without `thinking`,
    Qwen3's template begins it with an empty thought."""
    messages = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    return text


def count(tokenizer: Any, text: str) -> int:
    """How many tokens a text has, uncut."""
    return len(tokenizer(text, verbose=False)["input_ids"])


def read_tokenizer(checkpoint: Path) -> Any:
    """The checkpoint's tokenizer. Raises InvalidCheckpoint, naming the folder, if there is none."""
    folder = checkpoint / "tokenizer"
    if not folder.is_dir():
        raise InvalidCheckpoint(f"{folder}: no such folder; the checkpoint is incomplete")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(f"{folder}: the tokenizer cannot be read ({error})") from error


def _mask(real: torch.Tensor) -> torch.Tensor:
    """[1, 1, tokens, tokens]: each token sees the real ones up to itself; padding sees no padding."""
    tokens = real.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return causal & real[:, None, None, :]
