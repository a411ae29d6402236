"""Quantised checkpoints: the picture of the same numbers in fp32, to the bit."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lightx2v.config import EngineSettings
from lightx2v.pipeline import Pipeline
from tests.checkpoints.quantised import FORMS, write_packed, write_scaled
from tests.parity.reference import make_request, make_with_all

Pixels = npt.NDArray[np.int16]


def pixels(checkpoint: Path, **settings: Any) -> Pixels:
    (made,) = make_with_all(checkpoint, 64, **settings)
    return np.asarray(made.pixels, dtype=np.int16)


@pytest.fixture(scope="module")
def original(distilled: Path) -> Pixels:
    return pixels(distilled)


@pytest.fixture(scope="module")
def packed(distilled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_packed(distilled, tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def unpacked_pixels(packed: tuple[Path, Path]) -> Pixels:
    return pixels(packed[1])


@pytest.mark.parametrize("form", FORMS)
def test_scaled(form: str, distilled: Path, original: Pixels, tmp_path: Path) -> None:
    stored, by_hand = write_scaled(distilled, tmp_path, form)
    made = pixels(stored)
    assert np.array_equal(made, pixels(by_hand))
    assert 0 < np.abs(made - original).mean() < 30, "or it is noise"


@pytest.mark.parametrize(
    "settings",
    [
        {"cpu_offload": False},
        {"cpu_offload": True},
        {"cpu_offload": True, "offload_granularity": "phase"},
        {"cpu_offload": True, "lazy_load": True},
        {"cpu_offload": True, "offload_granularity": "model"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_packed(settings: dict[str, Any], packed: tuple[Path, Path], unpacked_pixels: Pixels) -> None:
    """Under every setting."""
    assert np.array_equal(pixels(packed[0], **settings), unpacked_pixels)


def test_packed_in_fp8_is_what_fp8_makes_of_the_unpacked(packed: tuple[Path, Path], unpacked_pixels: Pixels) -> None:
    in_fp8 = pixels(packed[0], fp8=True)
    assert np.array_equal(in_fp8, pixels(packed[1], fp8=True))
    assert not np.array_equal(in_fp8, unpacked_pixels)


def test_packed_weights_take_fewer_bytes(packed: tuple[Path, Path]) -> None:
    """All linear layers in blocks are packed, and the plan counts what they take."""
    ours, theirs = map(sizes, packed)
    for name in ("encode", "denoise"):
        assert ours[name] < 0.4 * theirs[name]


def sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of all blocks, by stage."""
    settings = EngineSettings(model=str(checkpoint), dtype="float32", device="cpu")
    with closing(Pipeline(settings)) as pipeline:
        return {size.stage: sum(size.units) for size in pipeline.sizes(make_request())}
