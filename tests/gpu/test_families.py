"""Every family on a real GPU, against the same code on the CPU, which is held to the references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.parity.reference import PIXELS, make_with_all

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("small_references"),
]


@pytest.fixture
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in fp32 too, whose inputs cuDNN would round to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def pixels(checkpoint: Path, **settings: Any) -> npt.NDArray[np.int16]:
    (made,) = make_with_all(checkpoint, 64, **settings)
    return np.asarray(made.pixels, dtype=np.int16)


@pytest.mark.usefixtures("exact_products")
def test_a_gpu_makes_what_a_cpu_makes(family: Path) -> None:
    assert np.abs(pixels(family, device="cuda") - pixels(family)).max() <= PIXELS


def test_in_bf16_what_streams_has_the_bits_of_what_stays(family: Path) -> None:
    settings = {"device": "cuda", "dtype": "bfloat16"}
    stays, streams = (pixels(family, cpu_offload=streams, **settings) for streams in (False, True))
    assert np.array_equal(stays, streams)
