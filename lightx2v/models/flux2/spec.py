"""FLUX.2 facts that hold before any weight is read; free of torch, for the HTTP side and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightx2v.models.configuration import read_configuration
from lightx2v.models.reference_image import centre_crop, fit_to_area
from lightx2v.models.spec import ModelSpec, override, read_grid
from lightx2v.types import GenerateRequest, Size

if TYPE_CHECKING:
    from PIL import Image

MAX_TOKENS = 512
"""Prompts are cut and padded to it; the transformer sees the padding."""

REFERENCE_AREA = 1024 * 1024

DEV = "Flux2Pipeline"
"""The class of checkpoints whose transformer embeds the guidance scale."""


@dataclass(frozen=True, slots=True)
class Flux2Spec(ModelSpec):
    """FLUX.2: text and up to eight reference pictures to a picture."""

    max_references: int = 8
    takes_mask: bool = True
    distilled: bool = False
    """Whether the checkpoint needs few steps and no guidance."""
    embeds_guidance: bool = False
    """Whether the transformer was trained to be told the guidance scale, in place of a second prompt."""

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """The picture in RGB, at most 1024 x 1024 pixels in area, centre-cropped to the multiple of both sides.

        Raises InvalidRequest if a side is below 64 pixels or one side is more than 8 times the other.
        """
        image = fit_to_area(image, REFERENCE_AREA)
        return centre_crop(image, *(side - side % self.multiple for side in image.size))

    @property
    def follows_guidance(self) -> bool:
        return self.embeds_guidance or not self.distilled

    def is_guided(self, request: GenerateRequest) -> bool:
        """Whether a step follows the difference between two prompts; distilled checkpoints never do, nor those whose
        transformer is told the scale."""
        return request.guidance > 1 and not (self.distilled or self.embeds_guidance)

    def edit_size(self, references: Sequence[Size]) -> Size:
        """The first fitted reference's size; the default where there is none."""
        return references[0] if references else self.size


def read_spec(checkpoint: Path) -> Flux2Spec:
    """The spec of a checkpoint; a `generation_config.json` at its root overrides the family's defaults."""
    index = read_configuration(checkpoint, "model_index.json")
    distilled = bool(index.get("is_distilled", False))
    size, multiple = read_grid(checkpoint)
    spec = Flux2Spec(
        distilled=distilled,
        size=size,
        steps=4 if distilled else 50,
        guidance=1.0 if distilled else 4.0,
        multiple=multiple,
        embeds_guidance=index.get("_class_name") == DEV,
    )
    return override(spec, checkpoint)
