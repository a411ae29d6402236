from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from tests.checkpoints.variants import written


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


base = written("flux2:write_klein", "base", distilled=False, max_shard_size="300KB", tied=False)
"""Undistilled, in many files, with a head of its own."""

edit_2509 = written("qwen_image:write_qwen_image_edit", "edit_2509", zero_cond_t=False)


@pytest.fixture(params=["distilled", "dev"])
def either(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture
def fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device attention would materialise its scores, which no kernel on a GPU does: if the values of one
    token and head lie together."""

    def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        assert [part.stride(-1) for part in (query, key, value)] == [1, 1, 1]
        return torch.empty_like(query)

    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Runs what would be compiled as it was traced, and counts the traces: code for a GPU is tests/gpu's matter."""
    counter, compiled = CompileCounter(), torch.compile

    def trace(forward: Any, *, fullgraph: bool, dynamic: bool, options: dict[str, Any]) -> Any:
        return compiled(forward, fullgraph=fullgraph, dynamic=dynamic, backend=counter)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", trace)
    yield counter
    torch._dynamo.reset()
