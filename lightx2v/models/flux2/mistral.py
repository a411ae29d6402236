"""FLUX.2 dev's language model: the language half of a Mistral-Small-3.2, prompted with a system message."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralModel

from lightx2v.layers.attention import exact_masks
from lightx2v.models.configuration import require
from lightx2v.models.flux2.encoder import Flux2TextEncoder
from lightx2v.models.visits import Visits, within
from lightx2v.types import Picture

SYSTEM_MESSAGE = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
"""Black Forest Labs' `SYSTEM_MESSAGE`, with its line break."""

IMAGE = "[IMG]"
"""The placeholder of a picture in a prompt. It is removed from the words of a user."""


class MistralTextEncoder(Flux2TextEncoder):
    """A text encoder whose prompts are padded on the left. Padding sees no token, not even itself, so attention gives
    it zeros and all its tokens become the same vector. One is computed, ahead of the prompt's."""

    language_model, config_class = MistralModel, MistralConfig
    taps = (10, 20, 30)
    prefix = "language_model.model."
    unread = (r"lm_head\.weight", r"(vision_tower|multi_modal_projector)\..*")

    def encode(self, prompt: str, pictures: Sequence[Picture], device: torch.device) -> Visits[torch.Tensor]:
        features = yield from within(exact_masks, super().encode(prompt, pictures, device))
        padding, prompted = features[:1], features[1:]
        return torch.cat((padding.expand(self.max_tokens - len(prompted), -1), prompted))

    def count_tokens(self, prompt: str, pictures: int) -> int:
        return len(self._ids(prompt))

    def _ids(self, prompt: str, **options: Any) -> Any:
        """The tokens of the prompt in its template; `options` of the tokenizer."""
        messages = [_message("system", SYSTEM_MESSAGE), _message("user", prompt.replace(IMAGE, ""))]
        return self.tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"]

    def _tokenise(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """One token of padding, then the prompt's."""
        ids = self._ids(prompt, return_tensors="pt", truncation=True, max_length=self.max_tokens)
        real = torch.ones_like(ids, dtype=torch.bool)
        return F.pad(ids, (1, 0), value=self.tokenizer.pad_token_id), F.pad(real, (1, 0), value=False)

    def language_config(self, values: dict[str, Any], file: Path) -> dict[str, Any]:
        config: dict[str, Any] = require(values, "text_config", file)
        return config


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
