"""Every family on a real GPU, against the same code on the CPU, which is held to the references."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.checkpoints.flux2 import write_dev, write_klein
from tests.checkpoints.qwen_image import write_qwen_image, write_qwen_image_edit
from tests.checkpoints.wan import write_wan, write_wan_clip, write_wan_i2v, write_wan_ti2v
from tests.checkpoints.z_image import write_z_image
from tests.parity.reference import PIXELS, make_with_all

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("small_references"),
]

WRITERS: dict[str, Callable[[Path], Path]] = {
    "klein": write_klein,
    "dev": write_dev,
    "z_image": partial(write_z_image, turbo=False),
    "qwen_image": write_qwen_image,
    "qwen_image_edit": partial(write_qwen_image_edit, zero_cond_t=True),
    "wan": write_wan,
    "wan_experts": partial(write_wan, experts=2),
    "wan_i2v": write_wan_i2v,
    "wan_clip": write_wan_clip,
    "wan_ti2v": write_wan_ti2v,
}


@pytest.fixture(params=WRITERS)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return WRITERS[request.param](tmp_path)


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
