"""Z-Image's text encoder: the output of the last layer but one of a Qwen3, for the prompt's own tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from lightx2v.models.language import LanguageEncoder, chat, count
from lightx2v.models.visits import Visits
from lightx2v.models.z_image.spec import MAX_TOKENS
from lightx2v.types import Picture


class ZImageTextEncoder(LanguageEncoder):
    """A Qwen3 without padding. The reference pads to 512 tokens and drops the states of the padding."""

    language_model, config_class = Qwen3Model, Qwen3Config
    prefix = "model."
    kept_widths = 3
    limit = MAX_TOKENS

    def depth(self, layers: int) -> int:
        return layers - 1 if layers > 1 else 2

    def count_tokens(self, prompt: str, pictures: int) -> int:
        return count(self.tokenizer, self.prompted(prompt))

    def prompted(self, prompt: str) -> str:
        """The prompt in its template."""
        return chat(self.tokenizer, prompt, thinking=True)

    @torch.no_grad()
    def encode(self, prompt: str, pictures: Sequence[Picture], device: torch.device) -> Visits[torch.Tensor]:
        state = yield from self.last_state(self.prompted(prompt), device)
        return state[0]
