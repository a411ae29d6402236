"""The variant of Wan that a checkpoint is, as its configurations say. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightx2v.core import Size
from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.configuration import has_part, read_configuration, require

INDEX, TRANSFORMER, VAE = "model_index.json", "transformer/config.json", "vae/config.json"
IMAGE_ENCODER = "image_encoder"

LATENTS = 16
"""Latent channels if a configuration does not say."""

MOST_BOUNDARY = 0.999
"""The largest boundary: the first step always lies above it."""


class VariantDefaults(NamedTuple):
    """The defaults of Wan's makers for one kind of checkpoint, always for five seconds of video."""

    steps: int = 50
    guidance: float = 5.0
    refine_guidance: float = 0.0
    size: Size = Size(832, 480)
    frames: int = 81
    rate: int = 16


OF_TEXT, OF_PICTURE = VariantDefaults(), VariantDefaults(steps=40)
EXPERTS_OF_TEXT, EXPERTS_OF_PICTURE = VariantDefaults(40, 4.0, 3.0), VariantDefaults(40, 3.5, 3.5)
EXPANDED = VariantDefaults(size=Size(1280, 704), frames=121, rate=24)


class ImageEncoderSpec(NamedTuple):
    """An image encoder: it sees a square of `side` pixels and makes `tokens` of it."""

    side: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Variant:
    """The properties that tell Wan's models apart."""

    boundary: float
    """Timesteps below this share of all belong to a second transformer; 0 if there is none."""
    of_picture: bool
    """Whether the transformer has channels for a picture beside those for the noise."""
    expand_timesteps: bool
    """Whether each token has a timestep, so that a picture can be the first frame."""
    image_encoder: ImageEncoderSpec | None
    """The image encoder; None if there is none."""

    @property
    def defaults(self) -> VariantDefaults:
        if self.expand_timesteps:
            return EXPANDED
        if self.boundary:
            return EXPERTS_OF_PICTURE if self.of_picture else EXPERTS_OF_TEXT
        return OF_PICTURE if self.of_picture else OF_TEXT


def read_variant(checkpoint: Path) -> Variant:
    """The variant of a checkpoint. Raises InvalidCheckpoint unless it makes videos from text, or from text and a
    picture."""
    index, file = read_configuration(checkpoint, INDEX), checkpoint / INDEX
    variant = Variant(
        _boundary(index, file),
        _has_channels(checkpoint),
        bool(index.get("expand_timesteps")),
        _read_image_encoder(index, checkpoint),
    )
    if variant.expand_timesteps and (variant.boundary or variant.of_picture):
        raise InvalidCheckpoint(
            f"{file}: with a timestep per token (expand_timesteps) neither a second transformer nor channels for a "
            "picture are supported"
        )
    return variant


def _boundary(index: dict[str, Any], file: Path) -> float:
    boundary = index.get("boundary_ratio")
    if has_part(index, "transformer_2") != (boundary is not None):
        raise InvalidCheckpoint(f"{file}: transformer_2 and boundary_ratio need each other; one of them is missing")
    if boundary is None:
        return 0.0
    if type(boundary) is not float or not 0 < boundary <= MOST_BOUNDARY:
        raise InvalidCheckpoint(f"{file}: boundary_ratio must be above 0 and at most {MOST_BOUNDARY}, not {boundary!r}")
    return boundary


def _has_channels(checkpoint: Path) -> bool:
    """Whether the transformer has channels for a picture: its latents and their mask."""
    vae, file = read_configuration(checkpoint, VAE), checkpoint / TRANSFORMER
    channels = read_configuration(checkpoint, TRANSFORMER).get("in_channels", LATENTS)
    latents, mask = vae.get("z_dim", LATENTS), vae.get("scale_factor_temporal", 4)
    if channels not in (latents, 2 * latents + mask):
        raise InvalidCheckpoint(f"{file}: a transformer of {channels} channels (in_channels) is not supported")
    return bool(channels > latents)


def _read_image_encoder(index: dict[str, Any], checkpoint: Path) -> ImageEncoderSpec | None:
    """The image encoder, with a token for each patch and one for the whole picture; None if there is none."""
    looks, config = has_part(index, IMAGE_ENCODER), f"{IMAGE_ENCODER}/config.json"
    if looks != bool(read_configuration(checkpoint, TRANSFORMER).get("image_dim")):
        raise InvalidCheckpoint(
            f"{checkpoint / TRANSFORMER}: image_dim and an {IMAGE_ENCODER} need each other; one of them is missing"
        )
    if not looks:
        return None
    values = read_configuration(checkpoint, config)
    side, patch = (require(values, key, checkpoint / config) for key in ("image_size", "patch_size"))
    return ImageEncoderSpec(side, (side // patch) ** 2 + 1)
