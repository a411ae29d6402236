"""The types that stages exchange. They are frozen, and free of torch at import, so that the HTTP side stays light."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

StageName = Literal["encode", "denoise", "refine", "decode"]
Policy = Literal["auto", "whole", "model", "streamed"]
"""Where weights live: as the plan says, all resident, all resident for each request, or streamed."""

STAGES: tuple[StageName, ...] = ("encode", "denoise", "refine", "decode")
"""All stages in the order in which a request uses them; the next user of memory follows from it. A model has `refine`
only if a second transformer takes its last steps."""

TRANSFORMERS: tuple[StageName, ...] = ("denoise", "refine")
"""The stages that take LoRAs."""

STRENGTH = 0.6
"""The default strength of a request, diffusers' own."""


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """The length of a model's videos: by default `frames`, always one more than a multiple of `multiple`; `rate` frames
    a second."""

    frames: int
    multiple: int
    rate: int

    def seconds_of(self, frames: int) -> float:
        """The duration of `frames` frames in seconds. The first frame is at time 0 and adds nothing."""
        return (frames - 1) / self.rate


class ChosenLora(NamedTuple):
    """A LoRA of the settings' `loras` by its name, and the factor of what it adds to the transformers."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA of one transformer. `path`: its file; None if it adds nothing to this transformer, or if it cannot be had,
    for the reason in `refusal`. `scale`: the factor of what it adds, beside the request's."""

    path: Path | None
    scale: float = 1.0
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One picture or video to make. It does not change after admission, so a retry makes the same bytes."""

    id: str
    prompt: str
    size: Size
    steps: int
    seed: int
    guidance: float = 1.0
    refine_guidance: float | None = None
    """The guidance scale of a second transformer's steps; None: the model's default."""
    negative_prompt: str = ""
    references: tuple[Size, ...] = ()
    """Sizes of the fitted reference pictures, in order; their pixels travel beside the request."""
    strength: float = STRENGTH
    """Image-to-image strength in (0, 1]: the share of the schedule that is run from the reference. 1 starts from pure
    noise."""
    is_masked: bool = False
    """Whether only a part of the first reference is made anew; its mask travels beside the request."""
    loras: tuple[ChosenLora, ...] = ()
    """The LoRAs that are added to the denoiser."""
    shift: float | None = None
    """The shift of the noise schedule instead of the model's, or None."""
    frames: int = 1
    """The number of frames; more than one make a video."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture. `pixels`: uint8 [height, width, 3], RGB."""

    pixels: npt.NDArray[np.uint8]

    @property
    def size(self) -> Size:
        return Size(self.pixels.shape[1], self.pixels.shape[0])


@dataclass(frozen=True, slots=True)
class Mask:
    """The part of a picture to make anew. `edited`: bool [height, width], false where the picture stays as it is."""

    edited: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference picture: `fitted` for the autoencoder, `encoder_view` for the encoder of the prompt, None if that
    takes no pictures. `mask`: of the size of `fitted`; None if the picture is no canvas that is changed in part."""

    fitted: Picture
    encoder_view: Picture | None = None
    mask: Mask | None = None


@dataclass(frozen=True, slots=True)
class Video:
    """A video. `pixels`: uint8 [frames, height, width, 3], RGB; `rate` frames a second."""

    pixels: npt.NDArray[np.uint8]
    rate: int

    @property
    def size(self) -> Size:
        return Size(self.pixels.shape[2], self.pixels.shape[1])


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The encoded prompts. `positive`: [tokens, features] in the model's dtype; `negative` likewise, None without
    guidance. `image_features`: [tokens, features] of the reference pictures; None if there is no image encoder."""

    positive: torch.Tensor
    negative: torch.Tensor | None = None
    image_features: torch.Tensor | None = None

    @property
    def branches(self) -> tuple[torch.Tensor, ...]:
        """The prompts that every step evaluates: `positive` and, if there is one, `negative`."""
        return (self.positive,) if self.negative is None else (self.positive, self.negative)


@dataclass(frozen=True, slots=True)
class Latents:
    """Latents. `tokens`: [frames * rows * columns, channels], row-major, normalised for the transformer."""

    tokens: torch.Tensor
    rows: int
    columns: int
    frames: int = 1
    history: tuple[torch.Tensor, ...] = ()
    """The solver's state after the steps so far, in the form that its schedule reads; empty when no step is left."""
    edited: torch.Tensor | None = None
    """fp32 [tokens, 1]: the share of each token's pixels that a request makes anew; None if there is no mask."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run: `step` of `total` denoising steps are done."""

    step: int
    total: int
