"""What the families' recipes have in common. Free of torch."""

from __future__ import annotations

import math
import re
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np

from lightx2v.core import STRENGTH, GenerateRequest, Picture, Reference, Size
from lightx2v.errors import InvalidCheckpoint, InvalidRequest
from lightx2v.limits import RANDOM_SEEDS, Limits
from lightx2v.models.configuration import read_configuration, require

if TYPE_CHECKING:
    from PIL import Image

    from lightx2v.models.registry import Recipe

OVERRIDES = "generation_config.json"

REFERENCE_MIN_SIDE = 64
REFERENCE_MAX_ASPECT = 8


class Defaults(Protocol):
    """A frozen dataclass with, among others, these fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def size(self) -> Size: ...

    @property
    def steps(self) -> int: ...

    @property
    def guidance(self) -> float: ...

    @property
    def multiple(self) -> int: ...


R = TypeVar("R", bound=Defaults)


def planning_request(recipe: Recipe) -> GenerateRequest:
    """The request that the plan is made for: all defaults, and no more references than are needed. Others make others
    give way meanwhile."""
    frames = _default_frames(recipe)
    references = (recipe.size,) * recipe.min_references
    return GenerateRequest(
        "plan", "", recipe.size, recipe.steps, 0, recipe.guidance, references=references, frames=frames
    )


def complete(
    prompt: str,
    recipe: Recipe,
    references: Sequence[Size],
    *,
    size: Size | None = None,
    steps: int | None = None,
    seed: int | None = None,
    guidance: float | None = None,
    strength: float | None = None,
    frames: int | None = None,
    negative_prompt: str = "",
    lora: str | None = None,
    lora_scale: float = 1.0,
) -> GenerateRequest:
    """A request with the model's defaults for what is None, and a seed that is drawn; still to be checked.

    `references`: the sizes of the fitted ones. Raises InvalidRequest for a strength that means nothing.
    """
    return GenerateRequest(
        id=str(uuid.uuid4()),
        prompt=prompt,
        size=size or recipe.edit_size(references),
        steps=recipe.steps if steps is None else steps,
        seed=secrets.randbelow(RANDOM_SEEDS) if seed is None else seed,
        guidance=recipe.guidance if guidance is None else guidance,
        refine_guidance=guidance,
        negative_prompt=negative_prompt,
        references=tuple(references),
        strength=choose_strength(strength, recipe, len(references)),
        lora=lora,
        lora_scale=lora_scale,
        frames=_default_frames(recipe) if frames is None else frames,
    )


def _default_frames(recipe: Recipe) -> int:
    return recipe.clip.frames if recipe.clip else 1


def override(recipe: R, checkpoint: Path) -> R:
    """`recipe` with the defaults that a `generation_config.json` at the root of the checkpoint sets in their place.

    Raises InvalidCheckpoint, naming the file, if one of them cannot be.
    """
    file = checkpoint / OVERRIDES
    if not file.exists():
        return recipe
    values = read_configuration(checkpoint, OVERRIDES)
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


def read_grid(checkpoint: Path) -> tuple[Size, int]:
    """What the autoencoder says of pictures: their size as trained, and of what their sides are multiples, which is a
    token of two by two latents."""
    vae, file = read_configuration(checkpoint, "vae/config.json"), checkpoint / "vae/config.json"
    side = require(vae, "sample_size", file)
    width, height = side if isinstance(side, list) else (side, side)
    return Size(width, height), 2 ** len(require(vae, "block_out_channels", file))


def check_reference(size: Size) -> None:
    """Raises InvalidRequest for a picture that the model was not trained to look at."""
    short, long = sorted((size.width, size.height))
    if short < REFERENCE_MIN_SIDE:
        raise InvalidRequest(f"a reference of {size} is too small: a side has at least {REFERENCE_MIN_SIDE}", "image")
    if long > short * REFERENCE_MAX_ASPECT:
        raise InvalidRequest(
            f"a reference of {size} is too elongated: one side may be {REFERENCE_MAX_ASPECT} times the other", "image"
        )


def make_reference(image: Image.Image, recipe: Recipe) -> Reference:
    """An opened picture as the model's parts take it. Raises InvalidRequest if it cannot be used."""
    fitted, seen = recipe.fit_reference(image), recipe.see(image)
    return Reference(_picture(fitted), None if seen is None else _picture(seen))


def fit_to_area(image: Image.Image, area: int) -> Image.Image:
    """A reference picture in RGB, shrunk to at most `area` pixels.

    Raises InvalidRequest if a side is below 64 pixels or one side is more than 8 times the other.
    """
    from PIL.Image import Resampling

    check_reference(Size(*image.size))
    image = image.convert("RGB")
    scaled = scale_to_area(Size(*image.size), area)
    if scaled == Size(*image.size):
        return image
    return image.resize((scaled.width, scaled.height), Resampling.LANCZOS)


def scale_to_area(size: Size, area: int) -> Size:
    """`size` shrunk, its aspect kept and its sides truncated, to at most `area` pixels."""
    if size.width * size.height <= area:
        return size
    scale = math.sqrt(area / (size.width * size.height))
    return Size(int(size.width * scale), int(size.height * scale))


def check_request(request: GenerateRequest, recipe: Recipe, limits: Limits) -> None:
    """Raises InvalidRequest for what may not be asked of anyone, or not of this model."""
    limits.check(request, recipe.multiple, recipe.clip)
    references = len(request.references)
    if references < recipe.min_references:
        raise InvalidRequest(f"image: this model needs at least {recipe.min_references} to work on", "image")
    if references > recipe.max_references:
        raise InvalidRequest(f"image: this model takes at most {recipe.max_references}, got {references}", "image")


def choose_strength(asked: float | None, recipe: Recipe, references: int) -> float:
    """A request's strength. Raises InvalidRequest for one that is none, or where it has no meaning."""
    if asked is None:
        return STRENGTH
    if not recipe.starts_from_picture:
        raise InvalidRequest("strength: this model does not start from a picture", "strength")
    if not references:
        raise InvalidRequest("strength: there is no picture to start from", "strength")
    if not 0 < asked <= 1:
        raise InvalidRequest(f"strength: must be above 0 and at most 1, got {asked}", "strength")
    return asked


def centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture that is at least as large."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _picture(image: Image.Image) -> Picture:
    return Picture(np.asarray(image, dtype=np.uint8))
