"""What a model is to those who ask it for pictures: its defaults and its abilities. Free of torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lightx2v.errors import InvalidCheckpoint, InvalidRequest
from lightx2v.models.configuration import read_configuration, require
from lightx2v.types import GenerateRequest, Size, VideoSpec

if TYPE_CHECKING:
    from PIL import Image

OVERRIDES = "generation_config.json"
PROMPT_TOKENS = 512
"""No family cuts prompts to fewer tokens, unless the checkpoint's tokenizer does."""
TOKENIZER = "tokenizer/tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a LoRA was made for: the defaults of the requests that choose it. None: the model's own."""

    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    """The shift of the noise schedule."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One checkpoint's defaults and abilities: here those of a model that makes pictures from text alone."""

    size: Size
    """The default size of a picture, in pixels."""
    steps: int
    """The default number of denoising steps."""
    guidance: float
    """The default guidance scale."""
    multiple: int
    """Both sides of a picture are multiples of it, in pixels."""
    video: VideoSpec | None = None
    """The default length of a video; None if the model makes pictures only."""
    min_references: int = 0
    """How many reference pictures a request needs at least."""
    max_references: int = 0
    """How many reference pictures a request may have."""
    starts_from_picture: bool = False
    """Whether the steps begin at a reference, so that a request has a strength."""
    takes_mask: bool = False
    """Whether a request may change only a part of its first reference."""
    prompt_tokens: int = PROMPT_TOKENS
    """The encoder reads at least so many tokens of a prompt, those of its template included."""
    takes_shift: bool = False
    """Whether a request may shift the noise schedule: sigma = shift s / (1 + (shift - 1) s)."""
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    """The recipes of the LoRAs in the settings, by name."""

    @property
    def follows_guidance(self) -> bool:
        """Whether any guidance scale changes a picture."""
        return True

    @property
    def has_refiner(self) -> bool:
        """Whether a second transformer takes the last steps."""
        return False

    def is_guided(self, request: GenerateRequest) -> bool:
        """Whether a step follows the difference between two prompts."""
        return request.guidance > 1

    def has_strength(self, request: GenerateRequest) -> bool:
        """Whether the steps of this request begin at its first reference."""
        return request.is_masked or (self.starts_from_picture and bool(request.references))

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """The reference picture as the autoencoder takes it. Raises InvalidRequest if it cannot be used."""
        raise InvalidRequest("this model makes pictures from text alone", "image")

    def encoder_view(self, image: Image.Image) -> Image.Image | None:
        """The reference picture as the text encoder sees it; None if the encoder looks at no pictures."""
        return None

    def edit_size(self, references: Sequence[Size]) -> Size:
        """The default size of a picture for fitted `references`, or for none."""
        return self.size


S = TypeVar("S", bound=ModelSpec)


def override(spec: S, checkpoint: Path) -> S:
    """`spec` with the defaults that `generation_config.json` at the root of the checkpoint sets, if there is one.

    Raises InvalidCheckpoint, naming the file, for a value that is out of range.
    """
    file = checkpoint / OVERRIDES
    if not file.exists():
        return spec
    values = read_configuration(checkpoint, OVERRIDES)
    steps = values.get("num_inference_steps", spec.steps)
    guidance = values.get("guidance_scale", spec.guidance)
    size = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(values.get("size", spec.size)))
    if type(steps) is not int or steps < 1:
        raise InvalidCheckpoint(f"{file}: num_inference_steps must be a positive integer, not {steps!r}")
    if type(guidance) not in (int, float) or not math.isfinite(guidance):
        raise InvalidCheckpoint(f"{file}: guidance_scale must be a number, not {guidance!r}")
    if size is None or int(size[1]) % spec.multiple or int(size[2]) % spec.multiple:
        raise InvalidCheckpoint(f'{file}: size must be like "256x256", in multiples of {spec.multiple}')
    return replace(spec, steps=steps, guidance=float(guidance), size=Size(int(size[1]), int(size[2])))


def read_prompt_tokens(checkpoint: Path) -> int:
    """How many tokens of a prompt are read at least, with this checkpoint's tokenizer."""
    values = read_configuration(checkpoint, TOKENIZER) if (checkpoint / TOKENIZER).exists() else {}
    return int(min(PROMPT_TOKENS, values.get("model_max_length") or PROMPT_TOKENS))


def read_grid(checkpoint: Path) -> tuple[Size, int]:
    """From the autoencoder's configuration: the size of pictures in training, and the side of a token in pixels, which
    is two latents."""
    vae, file = read_configuration(checkpoint, "vae/config.json"), checkpoint / "vae/config.json"
    side = require(vae, "sample_size", file)
    width, height = side if isinstance(side, list) else (side, side)
    return Size(width, height), 2 ** len(require(vae, "block_out_channels", file))
