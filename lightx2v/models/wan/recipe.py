"""What Wan's checkpoints take and make. Free of torch: the HTTP side reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lightx2v.core import Clip, GenerateRequest, Size
from lightx2v.errors import InvalidCheckpoint, InvalidRequest
from lightx2v.models.configuration import read_configuration, require
from lightx2v.models.recipe import OVERRIDES, override

if TYPE_CHECKING:
    from PIL import Image

INDEX, TRANSFORMER, VAE = "model_index.json", "transformer/config.json", "vae/config.json"

MAX_TOKENS = 512
"""Prompts are cut to it; the transformer sees zeros in place of what is missing."""

FRAMES, RATE = 81, 16
"""Five seconds, as the models were trained."""


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

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """Always raises InvalidRequest: the model looks at no pictures."""
        raise InvalidRequest("image: this model makes videos of text alone", "image")

    def see(self, image: Image.Image) -> Image.Image | None:
        """None: the text encoder is blind."""
        return None

    def is_guided(self, request: GenerateRequest) -> bool:
        """Whether a step follows the difference between two prompts."""
        return request.guidance > 1

    def edit_size(self, references: Sequence[Size]) -> Size:
        """The default size: there are no references."""
        return self.size


def read_recipe(checkpoint: Path) -> WanRecipe:
    """The recipe of a checkpoint; a `generation_config.json` at its root overrides the family's defaults.

    Raises InvalidCheckpoint for a Wan that is not a Wan 2.1 of text to video.
    """
    _check_variant(checkpoint)
    vae = read_configuration(checkpoint, VAE)
    patch = require(read_configuration(checkpoint, TRANSFORMER), "patch_size", checkpoint / TRANSFORMER)
    recipe = WanRecipe(
        size=Size(832, 480),
        steps=50,
        guidance=5.0,
        multiple=vae.get("scale_factor_spatial", 8) * patch[-1],
        clip=Clip(FRAMES, vae.get("scale_factor_temporal", 4), RATE),
    )
    return _override_frames(override(recipe, checkpoint), checkpoint)


def _check_variant(checkpoint: Path) -> None:
    index, file = read_configuration(checkpoint, INDEX), checkpoint / INDEX
    if index.get("expand_timesteps"):
        raise InvalidCheckpoint(f"{file}: a Wan with a timestep per token (expand_timesteps) is not supported")
    if index.get("boundary_ratio") is not None:
        raise InvalidCheckpoint(f"{file}: a Wan of two transformers (boundary_ratio) is not supported")


def _override_frames(recipe: WanRecipe, checkpoint: Path) -> WanRecipe:
    file = checkpoint / OVERRIDES
    values = read_configuration(checkpoint, OVERRIDES) if file.exists() else {}
    frames, multiple = values.get("num_frames", recipe.clip.frames), recipe.clip.multiple
    if type(frames) is not int or frames < 1 or frames % multiple != 1:
        raise InvalidCheckpoint(f"{file}: num_frames must be one more than a multiple of {multiple}, not {frames!r}")
    return replace(recipe, clip=replace(recipe.clip, frames=frames))
