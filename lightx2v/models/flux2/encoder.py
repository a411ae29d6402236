"""FLUX.2's text encoder: three layers' outputs of a language model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch

from lightx2v.models.flux2.spec import MAX_TOKENS
from lightx2v.models.language import LanguageEncoder
from lightx2v.models.visits import Visits
from lightx2v.types import Picture


class Flux2TextEncoder(LanguageEncoder):
    """The text encoder of FLUX.2, for any of its language models."""

    taps: ClassVar[tuple[int, ...]]
    """Numbers of the layers whose outputs, not normalised, make the conditioning side by side."""
    kept_widths = 6
    held_widths = 3
    limit = MAX_TOKENS

    def depth(self, layers: int) -> int:
        return self.taps[-1]

    @torch.no_grad()
    def encode(self, prompt: str, pictures: Sequence[Picture], device: torch.device) -> Visits[torch.Tensor]:
        """[tokens, features] of the prompt, tokenised. Its last token stands at the last of `max_tokens` positions."""
        ids, real = self._tokenise(prompt)
        states = yield from self.states(ids, real, device, self.taps, first=self.max_tokens - ids.shape[1])
        return torch.cat(states, dim=-1)[0]

    @abstractmethod
    def _tokenise(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, tokens] each, on the host: ids, and whether they are the prompt's or padding."""
