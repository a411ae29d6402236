"""What Wan's checkpoints take and make. Free of torch: the HTTP side reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightx2v.core import Clip, GenerateRequest, Size
from lightx2v.errors import InvalidCheckpoint, InvalidRequest
from lightx2v.models.configuration import read_configuration, require
from lightx2v.models.recipe import OVERRIDES, fit_to_area, override

if TYPE_CHECKING:
    from PIL import Image

INDEX, TRANSFORMER, VAE = "model_index.json", "transformer/config.json", "vae/config.json"

LATENTS = 16
"""Channels, where a configuration does not say."""

MAX_TOKENS = 512
"""Prompts are cut to it; the transformer sees zeros in place of what is missing."""

SIZE, FRAMES, RATE = Size(832, 480), 81, 16
EXPANDED_SIZE, EXPANDED_FRAMES, EXPANDED_RATE = Size(1280, 704), 121, 24
"""Five seconds, as the models were trained; those with a timestep per token have an autoencoder that shrinks more."""

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
    max_references: int = 0
    min_references: int = 0
    starts_from_picture: bool = False
    expand_timesteps: bool = False
    """Whether a reference is the first latent frame, at a timestep of its own; else it comes in channels."""

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """The picture in RGB, in its own size if that is not beyond every video that can be made of it.

        Raises InvalidRequest for one that cannot be used, or if the model looks at no pictures.
        """
        if not self.max_references:
            raise InvalidRequest(TEXT_ALONE, "image")
        return fit_to_area(image, REFERENCE_AREA)

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

    Raises InvalidCheckpoint for a Wan that is not one of text or a picture to video, with one transformer.
    """
    _check_variant(checkpoint)
    vae = read_configuration(checkpoint, VAE)
    patch = require(read_configuration(checkpoint, TRANSFORMER), "patch_size", checkpoint / TRANSFORMER)
    expanded, beside = _expands(checkpoint), _has_channels(checkpoint, vae)
    recipe = WanRecipe(
        size=EXPANDED_SIZE if expanded else SIZE,
        steps=50,
        guidance=5.0,
        multiple=vae.get("scale_factor_spatial", 8) * patch[-1],
        clip=_clip(vae, expanded),
        max_references=int(expanded or beside),
        min_references=int(beside),
        expand_timesteps=expanded,
    )
    return _override_frames(override(recipe, checkpoint), checkpoint)


def _check_variant(checkpoint: Path) -> None:
    index, file = read_configuration(checkpoint, INDEX), checkpoint / INDEX
    if index.get("boundary_ratio") is not None:
        raise InvalidCheckpoint(f"{file}: a Wan of two transformers (boundary_ratio) is not supported")


def _expands(checkpoint: Path) -> bool:
    return bool(read_configuration(checkpoint, INDEX).get("expand_timesteps"))


def _clip(vae: dict[str, Any], expanded: bool) -> Clip:
    multiple = vae.get("scale_factor_temporal", 4)
    return Clip(EXPANDED_FRAMES, multiple, EXPANDED_RATE) if expanded else Clip(FRAMES, multiple, RATE)


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
