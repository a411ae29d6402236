"""Makes, sends and receives pictures for tests and benchmarks."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image

from lightx2v.types import GenerateRequest, Picture, Size


def noise(size: Size, seed: int = 0) -> Picture:
    random = np.random.default_rng(seed)
    return Picture(random.integers(0, 256, (size.height, size.width, 3), dtype=np.uint8))


def png(picture: Picture) -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "png")
    return buffer.getvalue()


def pixels(item: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """The picture in one item of a response's `data`."""
    return np.asarray(Image.open(BytesIO(base64.b64decode(item["b64_json"]))))


def made(answer: httpx.Response) -> npt.NDArray[np.uint8]:
    """The only picture of a response that must be a success."""
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["data"]
    return pixels(item)


def asked(prompt: str, size: Size, seed: int, steps: int = 4, references: tuple[Size, ...] = ()) -> GenerateRequest:
    return GenerateRequest("test", prompt, size, steps, seed, references=references)
