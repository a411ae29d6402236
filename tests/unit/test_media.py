"""Pictures in and out: what is read, what is refused, and how little that costs."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lightx2v.errors import InvalidRequest
from lightx2v.media.encode import PICTURE_FORMATS, encode
from lightx2v.media.picture import MAX_PICTURE_PIXELS, decode_picture
from lightx2v.types import Picture

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
BASE = Image.fromarray(NOISE)


def file(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def png(width: int, height: int, extra: bytes = b"", data: bytes = b"") -> bytes:
    parts = (header(width, height), extra, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def vp8x(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    still = file(BASE, "WEBP")[12:]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas + still
    return b"RIFF" + struct.pack("<I", len(body)) + body


def many_scans(count: int) -> bytes:
    """A progressive file whose last scan is repeated, which any decoder takes."""
    data = file(BASE, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def oriented(value: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = value
    return {"exif": exif}


PNG, JPEG, WEBP = file(BASE, "PNG"), file(BASE, "JPEG"), file(BASE, "WEBP")
PALETTE = BASE.quantize(16)

EXACT = {
    "png": PNG,
    "lossless webp": file(BASE, "WEBP", lossless=True),
    "transparent": file(Image.fromarray(np.dstack([NOISE, NOISE[..., :1]])), "PNG"),
    "colour key": file(BASE, "PNG", transparency=(1, 2, 3)),
    "animated png": file(BASE, "PNG", save_all=True, append_images=[BASE.rotate(180)]),
    "animated webp": file(BASE, "WEBP", lossless=True, save_all=True, append_images=[BASE.rotate(180)]),
    "broken profile": file(BASE, "PNG", icc_profile=b"not a profile"),
    "turned": file(BASE.transpose(Image.Transpose.ROTATE_90), "PNG", **oriented(6)),
}


@pytest.mark.parametrize("data", EXACT.values(), ids=EXACT)
def test_a_picture_is_read_as_it_was_made(data: bytes) -> None:
    picture = decode_picture(data)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), NOISE)


OTHER = {
    "jpeg": JPEG,
    "webp": WEBP,
    "progressive": many_scans(2),
    "cmyk": file(BASE.convert("CMYK"), "JPEG"),
    "grey": file(BASE.convert("L"), "JPEG"),
    "bitmap": file(BASE.convert("1"), "PNG"),
    "grey with alpha": file(BASE.convert("LA"), "PNG"),
    "palette": file(PALETTE, "PNG"),
    "palette with alpha": file(PALETTE, "PNG", transparency=bytes(range(16))),
    "palette with a key": file(PALETTE, "PNG", transparency=3),
}


@pytest.mark.parametrize("data", OTHER.values(), ids=OTHER)
def test_every_mode_becomes_rgb(data: bytes) -> None:
    picture = decode_picture(data)
    assert (picture.mode, picture.size) == ("RGB", BASE.size)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    assert np.array_equal(np.asarray(decode_picture(file(Image.fromarray(deep), "PNG")))[..., 0], deep >> 8)


@pytest.mark.parametrize("value", range(1, 9))
def test_a_photo_is_turned_upright(value: int) -> None:
    width, height = decode_picture(file(BASE, "JPEG", **oriented(value))).size
    assert (width, height) == (BASE.size if value < 5 else BASE.size[::-1])


BROKEN = {
    "nothing": b"",
    "text": b"hello",
    "gif": file(BASE.convert("P"), "GIF"),
    "bmp": file(BASE, "BMP"),
    "tiff": file(BASE, "TIFF"),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>",
    "short png": PNG[: len(PNG) // 2],
    "short jpeg": JPEG[: len(JPEG) // 2],
    "short webp": WEBP[: len(WEBP) // 2],
    "png signature": PNG[:8],
    "jpeg signature": JPEG[:4],
    "webp signature": WEBP[:12],
    "webp header": WEBP[:20],
    "no pixels": png(0, 0),
    "no rows": png(8, 0),
    "bad checksum": PNG[:40] + bytes([PNG[40] ^ 1]) + PNG[41:],
    "bomb": png(20_000, 10_000, data=bytes(1 << 20)),
    "largest": png(2**31 - 1, 2**31 - 1),
    "two headers": png(8, 8, extra=header(20_000, 20_000)),
    "just too large": png(MAX_PICTURE_PIXELS + 1, 1),
    "webp bomb": vp8x(16_000, 16_000),
    "webp canvas": vp8x(1 << 24, 1 << 24),
    "profile bomb": png(8, 8, extra=chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(64 << 20)))),
    "text bomb": png(8, 8, extra=chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(64 << 20)))),
    "jpeg of many scans": many_scans(100),
}


@pytest.fixture
def little() -> Iterator[None]:
    """What runs inside takes little memory."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
@pytest.mark.usefixtures("little")
def test_a_broken_or_hostile_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="picture") as caught:
        decode_picture(data, "image[1]")
    assert caught.value.param == "image[1]"


@pytest.mark.parametrize("data", [png(20_000, 10_000), vp8x(16_000, 16_000)])
def test_a_bomb_is_refused_before_a_pixel_is_decoded(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    monkeypatch.setattr("PIL._webp.WebPAnimDecoder", never)
    with pytest.raises(InvalidRequest, match="pixels"):
        decode_picture(data)


@pytest.mark.parametrize("whole", [PNG, JPEG, WEBP], ids=["png", "jpeg", "webp"])
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_flipped_byte_does_more_than_be_refused(whole: bytes, seed: int) -> None:
    choice, data = random.Random(seed), bytearray(whole)
    for _ in range(choice.randint(1, 6)):
        data[choice.randrange(min(len(data), 256))] = choice.randrange(256)
    with suppress(InvalidRequest):
        decode_picture(bytes(data))


def test_pillow_and_warnings_are_left_as_they_were() -> None:
    before = Image.MAX_IMAGE_PIXELS
    decode_picture(PNG)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", PICTURE_FORMATS)
def test_a_picture_survives_its_file(kind: str) -> None:
    rows, columns = np.mgrid[0:48, 0:64]
    pixels = np.dstack([rows * 4, columns * 3, rows + columns]).astype(np.uint8)
    data = encode(Picture(pixels), kind)
    with Image.open(BytesIO(data)) as opened:
        assert (opened.format or "").lower() == kind
    again = np.asarray(decode_picture(data), dtype=float)
    assert np.abs(again - pixels).mean() <= (0 if kind == "png" else 4)
