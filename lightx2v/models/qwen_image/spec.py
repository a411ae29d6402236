"""Qwen-Image's defaults and abilities. Free of torch, for the HTTP side and the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightx2v.models.configuration import read_configuration, require
from lightx2v.models.reference_image import check_reference
from lightx2v.models.spec import ModelSpec, override
from lightx2v.types import Size

if TYPE_CHECKING:
    from PIL import Image

MAX_TOKENS = 512
"""Prompts are cut to it, and never padded."""

MAX_EDIT_TOKENS = 1024
"""Prompts of an edit are cut to it. The makers cut nothing there, but memory has to be set aside."""

NEGATIVE = " "
"""The negative prompt of a guided request that has none, as in the reference's examples. An empty one cannot be told
from none, so the scale alone says whether a request is guided."""

PATCH = 2
"""Latents along one side of a token."""

EDIT = "QwenImageEditPlusPipeline"
"""The class of checkpoints that were trained to edit pictures: 2509 and 2511."""

REFERENCE_AREA, SEEN_AREA = 1024 * 1024, 384 * 384
"""Pixels to which a reference is scaled, for the autoencoder and for the text encoder."""

REFERENCE_MULTIPLE = 32
"""Sides of a scaled reference are multiples of it, in pixels."""

SEEN_TOKENS = 222
"""The most tokens that the text encoder makes of one reference: of 160 x 1024 pixels, in squares of 28."""


@dataclass(frozen=True, slots=True)
class QwenImageEditSpec(ModelSpec):
    """A checkpoint that edits one picture, or composes several."""

    min_references: int = 1
    max_references: int = 3
    takes_mask: bool = True

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """The picture in RGB, its aspect nearly kept, of about 1024 x 1024 pixels.

        Raises InvalidRequest if a side is below 64 pixels or one side is more than 8 times the other.
        """
        check_reference(Size(*image.size))
        return _scaled(image, REFERENCE_AREA)

    def encoder_view(self, image: Image.Image) -> Image.Image:
        """The picture in RGB, its aspect nearly kept, of about 384 x 384 pixels."""
        return _scaled(image, SEEN_AREA)

    def edit_size(self, references: Sequence[Size]) -> Size:
        """The last fitted reference's size; the default where there is none."""
        return references[-1] if references else self.size


def read_spec(checkpoint: Path) -> ModelSpec:
    """The spec of a checkpoint; a `generation_config.json` at its root overrides the family's defaults."""
    vae, file = read_configuration(checkpoint, "vae/config.json"), checkpoint / "vae/config.json"
    multiple = PATCH * 2 ** len(require(vae, "temperal_downsample", file))
    if read_configuration(checkpoint, "model_index.json").get("_class_name") == EDIT:
        edit = QwenImageEditSpec(Size(1024, 1024), steps=40, guidance=4.0, multiple=multiple, takes_shift=True)
        return override(edit, checkpoint)
    return override(
        ModelSpec(Size(1024, 1024), steps=50, guidance=4.0, multiple=multiple, takes_shift=True), checkpoint
    )


def _scaled(image: Image.Image, area: int) -> Image.Image:
    """The picture in RGB, scaled to about `area` pixels; each side is rounded by itself."""
    from PIL.Image import Resampling

    aspect = image.width / image.height
    width = math.sqrt(area * aspect)
    size = _rounded(width), _rounded(width / aspect)
    return image.convert("RGB").resize(size, Resampling.LANCZOS)


def _rounded(side: float) -> int:
    return round(side / REFERENCE_MULTIPLE) * REFERENCE_MULTIPLE
