"""Z-Image's defaults and abilities. Free of torch, for the HTTP side and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightx2v.models.configuration import read_configuration, require
from lightx2v.models.reference_image import fit_to_area, scale_to_area
from lightx2v.models.spec import ModelSpec, override, read_grid
from lightx2v.types import GenerateRequest, Size

if TYPE_CHECKING:
    from PIL import Image

MAX_TOKENS = 512
"""Prompts are cut to it."""

REFERENCE_AREA = 2048 * 2048
"""The most pixels that a reference keeps on its way to the autoencoder, which resizes it to the request's size."""

EDIT_AREA = 1024 * 1024
TURBO_SHIFT = 3.0
"""The shift of Turbo's noise schedule; the base model's is 6. Nothing else in a checkpoint tells them apart."""


@dataclass(frozen=True, slots=True)
class ZImageSpec(ModelSpec):
    """Z-Image: text to a picture, or a picture to another. Turbo takes few steps and no guidance."""

    max_references: int = 1
    starts_from_picture: bool = True
    takes_mask: bool = True
    takes_shift: bool = True
    shift: float = TURBO_SHIFT
    """The shift of the noise schedule."""

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """The picture in RGB, in its own size unless that is beyond every picture that can be made of it.

        Raises InvalidRequest if a side is below 64 pixels or one side is more than 8 times the other.
        """
        return fit_to_area(image, REFERENCE_AREA)

    def is_guided(self, request: GenerateRequest) -> bool:
        """Whether a step follows the difference between two prompts. The scale is added to one, so 0 is no guidance."""
        return request.guidance > 0

    def edit_size(self, references: Sequence[Size]) -> Size:
        """The reference's own size, at most 1024 x 1024 pixels in area, in whole tokens."""
        if not references:
            return self.size
        size = scale_to_area(references[0], EDIT_AREA)
        return Size(size.width - size.width % self.multiple, size.height - size.height % self.multiple)


def read_spec(checkpoint: Path) -> ZImageSpec:
    """The spec of a checkpoint; a `generation_config.json` at its root overrides the family's defaults."""
    name = "scheduler/scheduler_config.json"
    shift = float(require(read_configuration(checkpoint, name), "shift", checkpoint / name))
    size, multiple = read_grid(checkpoint)
    turbo = shift <= TURBO_SHIFT
    spec = ZImageSpec(size, steps=8 if turbo else 50, guidance=0.0 if turbo else 4.0, multiple=multiple, shift=shift)
    return override(spec, checkpoint)
