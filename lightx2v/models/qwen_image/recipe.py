"""What Qwen-Image takes and what it assumes. Free of torch, for the HTTP side and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightx2v.core import Clip, GenerateRequest, Size
from lightx2v.errors import InvalidRequest
from lightx2v.models.configuration import read_configuration, require
from lightx2v.models.recipe import override

if TYPE_CHECKING:
    from PIL import Image

MAX_TOKENS = 512
"""Prompts are cut to it, and never padded."""

NEGATIVE = " "
"""The negative prompt of a guided request that brings none, as in the reference's examples. So guidance is up to the
scale alone: an empty negative prompt cannot be told from none."""

PATCH = 2
"""A token is a square of so many latent positions."""


@dataclass(frozen=True, slots=True)
class QwenImageRecipe:
    """The defaults of one checkpoint."""

    size: Size
    steps: int
    guidance: float
    multiple: int
    max_references: int = 0
    min_references: int = 0
    starts_from_picture: bool = False
    clip: Clip | None = None

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """Raises InvalidRequest: there is no place for a picture in this model."""
        raise InvalidRequest("this model makes pictures from text alone", "image")

    def is_guided(self, request: GenerateRequest) -> bool:
        """Whether a step follows the difference between two prompts: by the scale alone."""
        return request.guidance > 1

    def edit_size(self, references: Sequence[Size]) -> Size:
        return self.size


def read_recipe(checkpoint: Path) -> QwenImageRecipe:
    """The recipe of a checkpoint; a `generation_config.json` at its root overrides the family's defaults."""
    vae, file = read_configuration(checkpoint, "vae/config.json"), checkpoint / "vae/config.json"
    multiple = PATCH * 2 ** len(require(vae, "temperal_downsample", file))
    return override(QwenImageRecipe(Size(1024, 1024), steps=50, guidance=4.0, multiple=multiple), checkpoint)
