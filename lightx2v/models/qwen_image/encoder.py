"""Qwen-Image's text encoder: the normalised output of the last layer of a Qwen2.5-VL, without its vision model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from lightx2v.models.language import LanguageEncoder, count
from lightx2v.models.qwen_image.spec import MAX_TOKENS, NEGATIVE
from lightx2v.models.visits import Visits
from lightx2v.types import GenerateRequest, Picture

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
SYSTEM_TOKENS = 34
"""How many tokens of the template come before the user's words. The transformer does not see them."""


class QwenImageTextEncoder(LanguageEncoder):
    """A language model that reads text alone, so a position is the same on all three axes of its rotary embedding."""

    language_model, config_class = Qwen2_5_VLTextModel, Qwen2_5_VLTextConfig
    prefix = "model."
    unread: ClassVar[tuple[str, ...]] = (r"lm_head\.weight", r"visual\..*")
    kept_widths = 4
    limit = SYSTEM_TOKENS + MAX_TOKENS
    unreachable = frozenset()

    def depth(self, layers: int) -> int:
        return layers

    def language_config(self, values: dict[str, Any], file: Path) -> dict[str, Any]:
        """The configuration itself where it has no `text_config`, as in published checkpoints."""
        config: dict[str, Any] = values.get("text_config", values)
        return config

    def count_tokens(self, prompt: str, pictures: int) -> int:
        return count(self.tokenizer, self.prompted(prompt, pictures))

    def prompted(self, prompt: str, pictures: int) -> str:
        """The prompt in its template, with a place for each picture that is seen."""
        return TEMPLATE.format(prompt)

    def negative(self, request: GenerateRequest) -> str:
        return request.negative_prompt or NEGATIVE

    def through_layers(
        self, states: torch.Tensor, positions: torch.Tensor, real: torch.Tensor, taps: Collection[int]
    ) -> Visits[list[torch.Tensor]]:
        """As in the base class. `positions`: [1, tokens] for all axes, or [3, 1, tokens]; not every supported version
        of transformers takes the former."""
        return super().through_layers(states, positions.expand(3, -1, -1), real, taps)

    @torch.no_grad()
    def encode(self, prompt: str, pictures: Sequence[Picture], device: torch.device) -> Visits[torch.Tensor]:
        states = yield from self.last_state(self.prompted(prompt, 0), device)
        features: torch.Tensor = self.module.norm(states)[0, SYSTEM_TOKENS:]
        return features
