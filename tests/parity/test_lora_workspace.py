"""The memory that LoRAs of every kind take beside their factors, counted on the meta device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightx2v.weights.layout import Entry
from lightx2v.weights.lora_keys import Part
from lightx2v.weights.lora_parts import make_products
from lightx2v.weights.lora_products import Strip, scratch_bytes
from lightx2v.weights.tensor_ref import TensorRef
from tests.parity.live import LiveBytes

LEAVING, ENTERING, RANK, TOKENS = 4096, 3072, 64, 5000
FACTORS: dict[str, dict[Part, tuple[int, ...]]] = {
    "lora": {"down": (RANK, ENTERING), "up": (LEAVING, RANK), "up_bias": (LEAVING,)},
    "dora": {"down": (RANK, ENTERING), "up": (LEAVING, RANK), "magnitude": (LEAVING,)},
    "dora-large": {"down": (1024, ENTERING), "up": (LEAVING, 1024), "magnitude": (LEAVING,)},
    "lokr": {"lokr_w1": (64, 48), "lokr_w2": (64, 64)},
    "lokr-both": {"lokr_w1_a": (64, RANK), "lokr_w1_b": (RANK, 48), "lokr_w2_a": (64, RANK), "lokr_w2_b": (RANK, 64)},
    "loha": {
        "hada_w1_a": (LEAVING, RANK),
        "hada_w1_b": (RANK, ENTERING),
        "hada_w2_a": (LEAVING, RANK),
        "hada_w2_b": (RANK, ENTERING),
    },
    "whole": {"diff": (LEAVING, ENTERING)},
    "offset": {"diff_b": (LEAVING,)},
}


@pytest.mark.parametrize("kind", FACTORS)
def test_all_that_lives_is_counted(kind: str) -> None:
    """At a run's first use of a layer and at the next."""
    parts = {
        part: Entry(part, TensorRef(Path(), (), torch.bfloat16, shape), torch.bfloat16)
        for part, shape in FACTORS[kind].items()
    }
    (product,) = make_products(Path(), parts)
    with torch.device("meta"):
        layer = nn.Linear(ENTERING, LEAVING, dtype=torch.bfloat16)
        states = {entry.name: torch.empty(entry.shape, dtype=entry.dtype) for entry in product.entries}
        entering, leaving = (torch.empty(TOKENS, width, dtype=torch.bfloat16) for width in (ENTERING, LEAVING))
    there: Any = SimpleNamespace(module=nn.ParameterDict({**states, "x": entering, "y": leaving, "w": layer.weight}))
    with torch.no_grad(), LiveBytes(there) as meter:
        hook = product.hook(states, Strip(0, LEAVING, 0), 1.0)
        for _ in range(2):
            hook(layer, (entering,), leaving)
    assert meter.peak <= scratch_bytes([product], torch.bfloat16.itemsize)
