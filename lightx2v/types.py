"""What crosses the border of a stage. Frozen, and free of torch at import, so that the HTTP side stays light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

StageName = Literal["encode", "denoise", "refine", "decode"]
Policy = Literal["auto", "whole", "model", "streamed"]
"""How weights live: by the plan, all resident, whole for the time of a request, or streamed."""

STAGES: tuple[StageName, ...] = ("encode", "denoise", "refine", "decode")
"""In the order in which a request uses them; the next user of memory follows from it. `refine` is there only where a
second transformer takes the last steps."""

STRENGTH = 0.6
"""The default, diffusers' own."""


@dataclass(frozen=True, slots=True)
class Size:
    """Pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """How long a model's videos are: `frames` by default, always one more than a multiple of `multiple`, `rate` of them
    a second."""

    frames: int
    multiple: int
    rate: int


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One picture or video to make. Nothing in it changes after admission, so a retry makes the same bytes."""

    id: str
    prompt: str
    size: Size
    steps: int
    seed: int
    guidance: float = 1.0
    refine_guidance: float | None = None
    """Of the steps of a second transformer; None: what the model has for them."""
    negative_prompt: str = ""
    references: tuple[Size, ...] = ()
    """Sizes of the fitted reference pictures, in order; their pixels travel beside the request."""
    strength: float = STRENGTH
    """How much of the way is walked from a reference that is the start; 1 is all of it, from noise alone."""
    lora: str | None = None
    """The name of one of the settings' `loras`, added to the denoiser `lora_scale` times."""
    lora_scale: float = 1.0
    frames: int = 1
    """More than one make a video."""


@dataclass(frozen=True, slots=True)
class Picture:
    """`pixels`: uint8 [height, width, 3], RGB."""

    pixels: npt.NDArray[np.uint8]

    @property
    def size(self) -> Size:
        return Size(self.pixels.shape[1], self.pixels.shape[0])


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference picture as the autoencoder takes it, and as the text encoder sees it; None if that looks at none."""

    fitted: Picture
    encoder_view: Picture | None = None


@dataclass(frozen=True, slots=True)
class Video:
    """`pixels`: uint8 [frames, height, width, 3], RGB; `rate` frames a second."""

    pixels: npt.NDArray[np.uint8]
    rate: int

    @property
    def size(self) -> Size:
        return Size(self.pixels.shape[2], self.pixels.shape[1])


@dataclass(frozen=True, slots=True)
class Conditioning:
    """`positive`: [tokens, features] in the model's dtype; `negative` likewise, or None when no guidance is applied.
    `image_features`: [tokens, features] of the reference pictures, for both; None if the model has no image encoder."""

    positive: torch.Tensor
    negative: torch.Tensor | None = None
    image_features: torch.Tensor | None = None

    @property
    def branches(self) -> tuple[torch.Tensor, ...]:
        """What one step looks at: `positive` and, if there is one, `negative`."""
        return (self.positive,) if self.negative is None else (self.positive, self.negative)


@dataclass(frozen=True, slots=True)
class Latents:
    """`tokens`: [frames * rows * columns, channels], row-major, normalised as the transformer sees them."""

    tokens: torch.Tensor
    rows: int
    columns: int
    frames: int = 1
    history: tuple[torch.Tensor, ...] = ()
    """What the solver remembers of the steps so far, as its schedule reads it; nothing when no step is left."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `total` denoising steps are done."""

    step: int
    total: int
