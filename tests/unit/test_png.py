"""PNG files by their standard: read by Pillow and, for what Pillow overlooks, chunk by chunk."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from benchmarks.pictures import noise
from lightx2v.core import Size
from lightx2v.media.png import BAND_ROWS, encode_png

ROWS, COLUMNS = np.mgrid[0:200, 0:300]
GRADIENT = np.dstack([ROWS, COLUMNS // 2, (ROWS + COLUMNS) // 3]).astype(np.uint8)

PICTURES = {
    "one pixel": noise(Size(1, 1)).pixels,
    "one row": noise(Size(64, 1)).pixels,
    "one column": noise(Size(1, 64)).pixels,
    "a band but a row": noise(Size(5, BAND_ROWS - 1)).pixels,
    "a band": noise(Size(5, BAND_ROWS)).pixels,
    "a band and a row": noise(Size(5, BAND_ROWS + 1)).pixels,
    "several bands": noise(Size(50, 5 * BAND_ROWS + 7)).pixels,
    "flat": np.full((3 * BAND_ROWS, 90, 3), 255, np.uint8),
    "gradient": GRADIENT,
    "a view": GRADIENT[::-2, ::-3],
}


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk; its length and its checksum are right."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + content),)
        yield kind, content
        at += length + 12


@pytest.mark.parametrize("pixels", PICTURES.values(), ids=PICTURES)
def test_pillow_reads_what_was_written(pixels: npt.NDArray[np.uint8]) -> None:
    with Image.open(BytesIO(encode_png(pixels))) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize("pixels", PICTURES.values(), ids=PICTURES)
def test_the_data_are_one_whole_zlib_stream(pixels: npt.NDArray[np.uint8]) -> None:
    kinds, contents = zip(*chunks(encode_png(pixels)), strict=True)
    assert (kinds[0], kinds[-1], set(kinds[1:-1])) == (b"IHDR", b"IEND", {b"IDAT"})
    inflate = zlib.decompressobj()
    rows = inflate.decompress(b"".join(contents[1:-1]))  # raises on a wrong header or checksum
    height, width, _ = pixels.shape
    assert (inflate.eof, inflate.unused_data, len(rows)) == (True, b"", height * (1 + 3 * width))


def test_the_file_does_not_depend_on_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    files = set()
    for cores in (1, 3, None):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        files.add(encode_png(PICTURES["several bands"]))
    assert len(files) == 1


def test_what_is_smooth_becomes_small_and_noise_hardly_larger() -> None:
    assert len(encode_png(GRADIENT)) < GRADIENT.nbytes / 4
    pixels = noise(Size(512, 512)).pixels
    assert len(encode_png(pixels)) < 1.01 * pixels.nbytes
