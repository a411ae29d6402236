"""FLUX.2 facts that hold before any weight is read; free of torch, for the HTTP side and the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightx2v.core import Size
from lightx2v.errors import InvalidCheckpoint, InvalidRequest
from lightx2v.models.configuration import read_configuration, require

if TYPE_CHECKING:
    from PIL import Image

MAX_TOKENS = 512
"""Prompts are cut and padded to it; the transformer sees the padding."""

REFERENCE_AREA = 1024 * 1024
REFERENCE_MIN_SIDE = 64
REFERENCE_MAX_ASPECT = 8

OVERRIDES = "generation_config.json"


@dataclass(frozen=True, slots=True)
class Flux2Recipe:
    """The defaults of one checkpoint. Distilled ones take few steps and no guidance; `distilled` tells them apart."""

    distilled: bool
    size: Size
    steps: int
    guidance: float
    multiple: int

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """The picture in RGB, at most 1024 x 1024 pixels in area, centre-cropped to the multiple of both sides.

        Raises InvalidRequest if a side is below 64 pixels or one side is more than 8 times the other.
        """
        from PIL.Image import Resampling

        check_reference(Size(*image.size))
        image = image.convert("RGB")
        scaled = scale_to_area(Size(*image.size), REFERENCE_AREA)
        if scaled != Size(*image.size):
            image = image.resize((scaled.width, scaled.height), Resampling.LANCZOS)
        return _centre_crop(image, *(side - side % self.multiple for side in image.size))

    def edit_size(self, references: Sequence[Size]) -> Size:
        """The first fitted reference's size; the default where there is none."""
        return references[0] if references else self.size


def check_reference(size: Size) -> None:
    """Raises InvalidRequest for a picture that the model was not trained to look at."""
    short, long = sorted((size.width, size.height))
    if short < REFERENCE_MIN_SIDE:
        raise InvalidRequest(f"a reference of {size} is too small: a side has at least {REFERENCE_MIN_SIDE}", "image")
    if long > short * REFERENCE_MAX_ASPECT:
        raise InvalidRequest(
            f"a reference of {size} is too elongated: one side may be {REFERENCE_MAX_ASPECT} times the other", "image"
        )


def scale_to_area(size: Size, area: int) -> Size:
    """`size` shrunk, its aspect kept and its sides truncated, to at most `area` pixels."""
    if size.width * size.height <= area:
        return size
    scale = math.sqrt(area / (size.width * size.height))
    return Size(int(size.width * scale), int(size.height * scale))


def read_recipe(checkpoint: Path) -> Flux2Recipe:
    """The recipe of a checkpoint; a `generation_config.json` at its root overrides the family's defaults."""
    distilled = bool(read_configuration(checkpoint, "model_index.json").get("is_distilled", False))
    vae, file = read_configuration(checkpoint, "vae/config.json"), checkpoint / "vae/config.json"
    side = require(vae, "sample_size", file)
    width, height = side if isinstance(side, list) else (side, side)
    recipe = Flux2Recipe(
        distilled=distilled,
        size=Size(width, height),
        steps=4 if distilled else 50,
        guidance=1.0 if distilled else 4.0,
        multiple=2 ** len(require(vae, "block_out_channels", file)),
    )
    if not (checkpoint / OVERRIDES).exists():
        return recipe
    return _override(recipe, read_configuration(checkpoint, OVERRIDES), checkpoint / OVERRIDES)


def _override(recipe: Flux2Recipe, values: dict[str, Any], file: Path) -> Flux2Recipe:
    steps = values.get("num_inference_steps", recipe.steps)
    guidance = values.get("guidance_scale", recipe.guidance)
    size = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(values.get("size", recipe.size)))
    if type(steps) is not int or steps < 1:
        raise InvalidCheckpoint(f"{file}: num_inference_steps must be a positive integer, not {steps!r}")
    if type(guidance) not in (int, float) or not math.isfinite(guidance):
        raise InvalidCheckpoint(f"{file}: guidance_scale must be a number, not {guidance!r}")
    if size is None or int(size[1]) % recipe.multiple or int(size[2]) % recipe.multiple:
        raise InvalidCheckpoint(f'{file}: size must be like "256x256", in multiples of {recipe.multiple}')
    return replace(recipe, steps=steps, guidance=float(guidance), size=Size(int(size[1]), int(size[2])))


def _centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
