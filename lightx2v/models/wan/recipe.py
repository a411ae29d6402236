"""What Wan's checkpoints take and make. Free of torch: the HTTP side reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightx2v.core import Clip, GenerateRequest, Size
from lightx2v.errors import InvalidCheckpoint, InvalidRequest
from lightx2v.models.configuration import has_part, read_configuration, require
from lightx2v.models.recipe import OVERRIDES, fit_to_area, override

if TYPE_CHECKING:
    from PIL import Image

INDEX, TRANSFORMER, VAE = "model_index.json", "transformer/config.json", "vae/config.json"

LATENTS = 16
"""Channels, where a configuration does not say."""

MAX_TOKENS = 512
"""Prompts are cut to it; the transformer sees zeros in place of what is missing."""

MOST_BOUNDARY = 0.999
"""The first step is always above it."""


class Habits(NamedTuple):
    """How Wan's makers use a kind of checkpoint: always for five seconds."""

    steps: int = 50
    guidance: float = 5.0
    refine_guidance: float = 0.0
    size: Size = Size(832, 480)
    frames: int = 81
    rate: int = 16


OF_TEXT, OF_PICTURE = Habits(), Habits(steps=40)
EXPERTS_OF_TEXT, EXPERTS_OF_PICTURE = Habits(40, 4.0, 3.0), Habits(40, 3.5, 3.5)

REFERENCE_AREA = 2048 * 2048
"""The most pixels that a reference keeps on its way to the autoencoder, which resizes it to the request's size."""

TEXT_ALONE = "image: this model makes videos of text alone"


@dataclass(frozen=True, slots=True)
class WanRecipe:
    """The defaults of one checkpoint."""

    size: Size
    steps: int
    guidance: float
    multiple: int
    clip: Clip
    min_references: int = 0
    max_references: int = 0
    starts_from_picture: bool = False
    boundary: float = 0.0
    """Timesteps below this part of all belong to a second transformer; at 0 there is none."""
    refine_guidance: float = 0.0
    """The guidance scale of its steps."""
    flow_shift: float | None = None
    """In place of the scheduler's: published checkpoints carry the converter's default, not what Wan's makers use."""

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """The picture in RGB, in its own size if that is not beyond every video that can be made of it.

        Raises InvalidRequest for one that cannot be used, or if the model looks at no pictures.
        """
        if not self.max_references:
            raise InvalidRequest(TEXT_ALONE, "image")
        return fit_to_area(image, REFERENCE_AREA)

    def see(self, image: Image.Image) -> Image.Image | None:
        """None: the text encoder is blind."""
        return None

    def is_guided(self, request: GenerateRequest) -> bool:
        """Whether a step follows the difference between two prompts."""
        return request.guidance > 1

    def edit_size(self, references: Sequence[Size]) -> Size:
        """About as many pixels as by default, in the picture's aspect and in whole tokens."""
        if not references:
            return self.size
        area, aspect = self.size.width * self.size.height, references[0].width / references[0].height
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        return Size(width - width % self.multiple, height - height % self.multiple)


def read_recipe(checkpoint: Path) -> WanRecipe:
    """The recipe of a checkpoint; a `generation_config.json` at its root overrides the family's defaults.

    Raises InvalidCheckpoint for a Wan that is not a Wan 2.1 or 2.2 of text or a picture to video.
    """
    boundary = _check_variant(checkpoint)
    vae = read_configuration(checkpoint, VAE)
    patch = require(read_configuration(checkpoint, TRANSFORMER), "patch_size", checkpoint / TRANSFORMER)
    of_picture = _has_channels(checkpoint, vae)
    habits = _habits(of_picture, boundary > 0)
    recipe = WanRecipe(
        size=habits.size,
        steps=habits.steps,
        guidance=habits.guidance,
        multiple=vae.get("scale_factor_spatial", 8) * patch[-1],
        clip=Clip(habits.frames, vae.get("scale_factor_temporal", 4), habits.rate),
        min_references=int(of_picture),
        max_references=int(of_picture),
        boundary=boundary,
        refine_guidance=habits.refine_guidance,
    )
    return _override_steps(_override_frames(override(recipe, checkpoint), checkpoint), checkpoint)


def _check_variant(checkpoint: Path) -> float:
    """The boundary between two transformers; 0 where there is one."""
    index, file = read_configuration(checkpoint, INDEX), checkpoint / INDEX
    if index.get("expand_timesteps"):
        raise InvalidCheckpoint(f"{file}: a Wan with a timestep per token (expand_timesteps) is not supported")
    boundary = index.get("boundary_ratio")
    if has_part(index, "transformer_2") != (boundary is not None):
        raise InvalidCheckpoint(f"{file}: transformer_2 and boundary_ratio need each other; one of them is missing")
    if boundary is None:
        return 0.0
    if type(boundary) is not float or not 0 < boundary <= MOST_BOUNDARY:
        raise InvalidCheckpoint(f"{file}: boundary_ratio must be above 0 and at most {MOST_BOUNDARY}, not {boundary!r}")
    return boundary


def _override_steps(recipe: WanRecipe, checkpoint: Path) -> WanRecipe:
    """`guidance_scale` alone is for both transformers; as in a request."""
    file = checkpoint / OVERRIDES
    values = read_configuration(checkpoint, OVERRIDES) if file.exists() else {}
    guidance = values.get("guidance_scale_2", values.get("guidance_scale", recipe.refine_guidance))
    shift = values.get("flow_shift", 1)
    if type(guidance) not in (int, float) or not math.isfinite(guidance):
        raise InvalidCheckpoint(f"{file}: guidance_scale_2 must be a number, not {guidance!r}")
    if type(shift) not in (int, float) or not 0 < shift < math.inf:
        raise InvalidCheckpoint(f"{file}: flow_shift must be a positive number, not {shift!r}")
    return replace(recipe, refine_guidance=float(guidance), flow_shift=values.get("flow_shift"))


def _habits(of_picture: bool, experts: bool) -> Habits:
    if experts:
        return EXPERTS_OF_PICTURE if of_picture else EXPERTS_OF_TEXT
    return OF_PICTURE if of_picture else OF_TEXT


def _has_channels(checkpoint: Path, vae: dict[str, Any]) -> bool:
    """Whether the transformer has channels for a picture's latents and their mask beside those for the noise."""
    channels, file = read_configuration(checkpoint, TRANSFORMER).get("in_channels", LATENTS), checkpoint / TRANSFORMER
    latents, mask = vae.get("z_dim", LATENTS), vae.get("scale_factor_temporal", 4)
    if channels not in (latents, 2 * latents + mask):
        raise InvalidCheckpoint(f"{file}: a transformer of {channels} channels (in_channels) is not supported")
    return bool(channels > latents)


def _override_frames(recipe: WanRecipe, checkpoint: Path) -> WanRecipe:
    file = checkpoint / OVERRIDES
    values = read_configuration(checkpoint, OVERRIDES) if file.exists() else {}
    frames, multiple = values.get("num_frames", recipe.clip.frames), recipe.clip.multiple
    if type(frames) is not int or frames < 1 or frames % multiple != 1:
        raise InvalidCheckpoint(f"{file}: num_frames must be one more than a multiple of {multiple}, not {frames!r}")
    return replace(recipe, clip=replace(recipe.clip, frames=frames))
