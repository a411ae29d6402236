"""Attention of all modules that are written here. The language and vision models of transformers, and the autoencoders
of diffusers, bring their own; both call PyTorch's as this does."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Full attention. In: [batch, tokens, heads, head_dim] each; out: [batch, tokens, heads * head_dim]."""
    attended = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return attended.transpose(1, 2).flatten(2)


def exact_masks() -> AbstractContextManager[None]:
    """Within the context, a token whose mask hides everything gets zeros. cuDNN's kernel would give it the mean of what
    is hidden."""
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
