"""The engine on a real GPU. Run with `python -m pytest tests/gpu` where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightx2v.config import EngineSettings
from lightx2v.core import Picture, Size
from lightx2v.errors import OutOfMemory
from lightx2v.pipeline import CONTEXT, Pipeline
from lightx2v.weights.device import CudaDevice
from tests.pictures import asked, noise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIZES = (Size(96, 64), Size(64, 80))


@pytest.fixture(autouse=True)
def _memory_returns() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)


def make(checkpoint: Path, **settings: Any) -> tuple[Picture, Picture]:
    pipeline = Pipeline(EngineSettings(model=str(checkpoint), device="cuda", **settings))
    references = [noise(size, seed) for seed, size in enumerate(SIZES)]
    text = pipeline.generate(asked("a red circle", SIZES[0], 1))
    edit = pipeline.generate(asked("a red circle", SIZES[0], 1, references=SIZES), references)
    pipeline.close()
    assert torch.cuda.memory_allocated() < 256 << 20
    return text, edit


@pytest.mark.parametrize(
    "settings",
    [
        {"cpu_offload": False},
        {"cpu_offload": True, "offload_granularity": "model"},
        {"cpu_offload": True, "offload_granularity": "block"},
        {"cpu_offload": True, "offload_granularity": "phase"},
        {"cpu_offload": True, "lazy_load": True},
        {"gpu_budget": CONTEXT + (40 << 20)},
    ],
)
def test_same_bits_under_every_setting(checkpoint: Path, settings: dict[str, Any]) -> None:
    for picture, expected in zip(make(checkpoint, **settings), make(checkpoint), strict=True):
        assert np.array_equal(picture.pixels, expected.pixels)


def test_a_run_is_held_to_its_grant() -> None:
    device = CudaDevice()
    with pytest.raises(OutOfMemory), device.workspace(0, 64 << 20):
        torch.empty(1 << 30, dtype=torch.uint8, device=device.torch_device)


def test_dropped_memory_is_free_for_other_processes(checkpoint: Path) -> None:
    device = CudaDevice()
    before = torch.cuda.mem_get_info()[0]
    slab = device.allocate(1 << 30)
    assert torch.cuda.mem_get_info()[0] <= before - slab.nbytes
    del slab
    device.trim()
    assert torch.cuda.mem_get_info()[0] >= before - (4 << 20)
