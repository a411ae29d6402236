"""Projections for attention over text and image together."""

from __future__ import annotations

import torch
from torch import nn


class JointProjections(nn.Module):
    """Queries, keys and values, with `to_*` weights for the image and `add_*` weights for the text. In: [..., tokens,
    width] each; out: the text's heads and the image's, [..., tokens, heads, head_dim] each."""

    def __init__(self, width: int, head_dim: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width, bias) for _ in range(3))
        self.norm_q, self.norm_k = nn.RMSNorm(head_dim, eps=eps), nn.RMSNorm(head_dim, eps=eps)
        self.norm_added_q, self.norm_added_k = nn.RMSNorm(head_dim, eps=eps), nn.RMSNorm(head_dim, eps=eps)
        self.to_out = nn.ModuleList((nn.Linear(width, width, bias),))
        self.to_add_out = nn.Linear(width, width, bias)

    def query(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The normalised queries of text and of image."""
        return self.norm_added_q(self._heads(self.add_q_proj(text))), self.norm_q(self._heads(self.to_q(image)))

    def key(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The normalised keys of text and of image."""
        return self.norm_added_k(self._heads(self.add_k_proj(text))), self.norm_k(self._heads(self.to_k(image)))

    def value(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The values of text and of image."""
        return self._heads(self.add_v_proj(text)), self._heads(self.to_v(image))

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim))
