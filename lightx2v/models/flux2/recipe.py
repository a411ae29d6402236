"""FLUX.2 facts that hold before any weight is read; free of torch, for the HTTP side and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightx2v.core import Clip, GenerateRequest, Size
from lightx2v.models.configuration import read_configuration
from lightx2v.models.recipe import centre_crop, fit_to_area, override, read_grid

if TYPE_CHECKING:
    from PIL import Image

MAX_TOKENS = 512
"""Prompts are cut and padded to it; the transformer sees the padding."""

REFERENCE_AREA = 1024 * 1024

DEV = "Flux2Pipeline"
"""The class of checkpoints whose transformer embeds the guidance scale."""


@dataclass(frozen=True, slots=True)
class Flux2Recipe:
    """The defaults of one checkpoint. Distilled ones take few steps and no guidance; `distilled` tells them apart."""

    distilled: bool
    size: Size
    steps: int
    guidance: float
    multiple: int
    embeds_guidance: bool = False
    """Whether the transformer was trained to be told the guidance scale, in place of a second prompt."""
    min_references: int = 0
    max_references: int = 8
    starts_from_picture: bool = False
    clip: Clip | None = None

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """The picture in RGB, at most 1024 x 1024 pixels in area, centre-cropped to the multiple of both sides.

        Raises InvalidRequest if a side is below 64 pixels or one side is more than 8 times the other.
        """
        image = fit_to_area(image, REFERENCE_AREA)
        return centre_crop(image, *(side - side % self.multiple for side in image.size))

    def see(self, image: Image.Image) -> Image.Image | None:
        """None: the text encoder is blind."""
        return None

    def is_guided(self, request: GenerateRequest) -> bool:
        """Whether a step follows the difference between two prompts; distilled checkpoints never do, nor those whose
        transformer is told the scale."""
        return request.guidance > 1 and not (self.distilled or self.embeds_guidance)

    def edit_size(self, references: Sequence[Size]) -> Size:
        """The first fitted reference's size; the default where there is none."""
        return references[0] if references else self.size


def read_recipe(checkpoint: Path) -> Flux2Recipe:
    """The recipe of a checkpoint; a `generation_config.json` at its root overrides the family's defaults."""
    index = read_configuration(checkpoint, "model_index.json")
    distilled = bool(index.get("is_distilled", False))
    size, multiple = read_grid(checkpoint)
    recipe = Flux2Recipe(
        distilled=distilled,
        size=size,
        steps=4 if distilled else 50,
        guidance=1.0 if distilled else 4.0,
        multiple=multiple,
        embeds_guidance=index.get("_class_name") == DEV,
    )
    return override(recipe, checkpoint)
