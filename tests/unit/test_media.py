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
from lightx2v.media.picture import MAX_WHOLE_PIXELS, decode_alpha, decode_picture
from lightx2v.media.picture_file import MAX_PICTURE_PIXELS
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


def deep_png(colour: int, samples: np.ndarray[Any, Any], key: bytes = b"") -> bytes:
    """A file of 16 bits a sample, which Pillow does not write. `samples`: uint16 [height, width, channels]."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))]
    parts += [chunk(b"tRNS", key)] if key else []
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def oriented(value: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = value
    return {"exif": exif}


PNG, JPEG, WEBP, AVIF = (file(BASE, kind) for kind in ("PNG", "JPEG", "WEBP", "AVIF"))
PALETTE = BASE.quantize(16)

EXACT = {
    "png": PNG,
    "lossless webp": file(BASE, "WEBP", lossless=True),
    "opaque": file(BASE.convert("RGBA"), "PNG"),
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


RAMP = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
HALVES = np.where(np.arange(64) < 32, 0, 255).astype(np.uint8) * np.ones((48, 1), np.uint8)


def see_through(mode: str, alpha: np.ndarray[Any, Any], hidden: int) -> Image.Image:
    """Noise under an alpha channel, with `hidden` in place of the colours that nobody sees."""
    colours = np.asarray(BASE.convert(mode.removesuffix("A")))
    colours = colours.reshape(48, 64, -1).copy()
    colours[alpha == 0] = hidden
    return Image.fromarray(np.dstack([colours, alpha]), mode)


@pytest.mark.parametrize("alpha", [RAMP, HALVES], ids=["ramp", "halves"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_a_picture_is_what_one_sees_on_white(
    kind: str, options: dict[str, Any], mode: str, alpha: np.ndarray[Any, Any]
) -> None:
    pictures = [see_through(mode, alpha, hidden) for hidden in (0, 137)]
    red, black = (np.asarray(decode_picture(file(picture, kind, **options))) for picture in pictures)
    white = Image.new("RGBA", BASE.size, "white")
    expected = np.asarray(Image.alpha_composite(white, pictures[0].convert("RGBA")).convert("RGB"))
    np.testing.assert_array_equal(red, black)
    np.testing.assert_allclose(red.astype(int), expected, atol=1)


def test_an_avif_is_read_with_its_alpha() -> None:
    pictures = [see_through("RGBA", HALVES, hidden) for hidden in (0, 137)]
    red, black = (np.asarray(decode_picture(file(one, "AVIF", quality=100, subsampling="4:4:4"))) for one in pictures)
    np.testing.assert_array_equal(red, black)
    assert (red[:, :32] == 255).all()
    np.testing.assert_allclose(red[:, 32:].astype(int), NOISE[:, 32:], atol=8)


DARK, LIGHT = 0x1200, 0x1234
COLOURS = np.repeat(np.array([DARK, LIGHT], np.uint16), 32)[None, :, None] * np.ones((48, 1, 1), np.uint16)
ONE_KEY, THREE_KEYS = struct.pack(">H", LIGHT), struct.pack(">HHH", *[0x8000] * 3)
GREYS = Image.fromarray(np.repeat(np.array([[1, 2]], np.uint8), 32, axis=1).repeat(48, axis=0))

KEYED = {
    "palette": file(GREYS.convert("P"), "PNG", transparency=2),
    "palette of opacities": file(GREYS.convert("P"), "PNG", transparency=bytes([0, 255, 0])),
    "colour": file(GREYS.convert("RGB"), "PNG", transparency=(2, 2, 2)),
    "grey": file(GREYS, "PNG", transparency=2),
    "two bits": file(Image.fromarray(np.asarray(GREYS) * 85), "PNG", bits=2, transparency=2),
    "one bit": file(GREYS.point([0, 0, 255] + [0] * 253, "1"), "PNG", transparency=1),
    "sixteen bits": deep_png(0, COLOURS, ONE_KEY),
    "sixteen bits with alpha": deep_png(4, np.dstack([COLOURS, (COLOURS == DARK) * np.uint16(65535)])),
    "sixteen bits of colour": deep_png(2, np.where(COLOURS == LIGHT, 0x8000, COLOURS).repeat(3, axis=2), THREE_KEYS),
}


@pytest.mark.parametrize("data", KEYED.values(), ids=KEYED)
def test_one_transparent_colour_is_white_in_every_mode(data: bytes) -> None:
    """The left half is dark, and the right half has the colour that the file calls transparent."""
    pixels, alpha = np.asarray(decode_picture(data)), decode_alpha(data)
    assert (pixels[:, :32] < 128).all()
    assert (pixels[:, 32:] == 255).all()
    assert alpha is not None
    np.testing.assert_array_equal(alpha, 255 - HALVES)


def test_the_alpha_of_a_picture_lies_as_its_colours_do() -> None:
    turned = see_through("RGBA", RAMP, 0).transpose(Image.Transpose.ROTATE_90)
    alpha = decode_alpha(file(turned, "PNG", **oriented(6)))
    assert alpha is not None
    np.testing.assert_array_equal(alpha, RAMP)
    assert decode_alpha(PNG) is None
    assert decode_alpha(JPEG) is None


def test_a_large_photo_is_halved_as_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera's 48 MP: the colours are those of the picture, halved by another filter."""
    photo = BASE.resize((8064, 6048), Image.Resampling.BICUBIC)
    expected = np.asarray(photo.reduce(2).transpose(Image.Transpose.ROTATE_270), dtype=int)
    monkeypatch.delattr("PIL.Image.Image.reduce")
    picture = decode_picture(file(photo, "JPEG", **oriented(6)))
    assert picture.size == (3024, 4032)
    assert np.abs(np.asarray(picture, dtype=int) - expected).mean() < 3


def test_a_large_drawing_is_halved_with_its_alpha() -> None:
    width, height = 8000, MAX_WHOLE_PIXELS // 8000 + 2
    data = file(Image.new("1", (width, height), 1), "PNG", transparency=1)
    assert decode_picture(data).size == (width // 2, height // 2)
    alpha = decode_alpha(data)
    assert alpha is not None
    assert (alpha.shape, alpha.max()) == ((height // 2, width // 2), 0)


REFUSED = {
    "GIF": file(BASE.convert("P"), "GIF"),
    "BMP": file(BASE, "BMP"),
    "TIFF": file(BASE, "TIFF"),
    "ICO": file(BASE, "ICO"),
    "JPEG 2000": file(BASE, "JPEG2000"),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(32),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>",
}


@pytest.mark.parametrize(("name", "data"), REFUSED.items(), ids=REFUSED)
def test_a_format_that_is_not_read_is_named(name: str, data: bytes) -> None:
    with pytest.raises(InvalidRequest, match=f"image: {name} pictures are not read; save it as PNG, JPEG or WEBP"):
        decode_picture(data)


def test_avif_is_refused_by_name_where_pillow_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda _: False)
    with pytest.raises(InvalidRequest, match="AVIF pictures are not read"):
        decode_picture(AVIF)


OTHER = {
    "jpeg": JPEG,
    "webp": WEBP,
    "avif": AVIF,
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
    "short png": PNG[: len(PNG) // 2],
    "short jpeg": JPEG[: len(JPEG) // 2],
    "short webp": WEBP[: len(WEBP) // 2],
    "short avif": AVIF[: len(AVIF) // 2],
    "avif signature": AVIF[:32],
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


@pytest.mark.parametrize("whole", [PNG, JPEG, WEBP, AVIF], ids=["png", "jpeg", "webp", "avif"])
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
