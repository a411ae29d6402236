"""FLUX.2 klein's language model: a Qwen3, prompted with the user's words alone."""

from __future__ import annotations

import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from lightx2v.models.flux2.encoder import Flux2TextEncoder
from lightx2v.models.language import chat, count


class Qwen3TextEncoder(Flux2TextEncoder):
    """The text encoder of klein."""

    language_model, config_class = Qwen3Model, Qwen3Config
    taps = (9, 18, 27)
    prefix = "model."

    def count_tokens(self, prompt: str, pictures: int) -> int:
        return count(self.tokenizer, self.prompted(prompt))

    def prompted(self, prompt: str) -> str:
        """The prompt in its template."""
        return chat(self.tokenizer, prompt, thinking=False)

    def _tokenise(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, padded on the right. Padding sees the prompt, so each of its tokens is computed."""
        tokens = self.tokenizer(
            self.prompted(prompt),
            return_tensors="pt",
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=self.max_tokens,
        )
        return tokens["input_ids"], tokens["attention_mask"].bool()
