"""Wan's defaults and abilities. Free of torch: the HTTP side reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lightx2v.errors import InvalidCheckpoint, InvalidRequest
from lightx2v.models.configuration import read_configuration, require
from lightx2v.models.reference_image import centre_crop, fit_to_area
from lightx2v.models.spec import OVERRIDES, ModelSpec, override
from lightx2v.models.wan.variant import TRANSFORMER, VAE, ImageEncoderSpec, read_variant
from lightx2v.types import Size, VideoSpec

if TYPE_CHECKING:
    from PIL import Image

MAX_TOKENS = 512
"""Prompts are cut to it; the transformer sees zeros in place of what is missing."""

REFERENCE_AREA = 2048 * 2048
"""The most pixels that a reference keeps on its way to the autoencoder, which resizes it to the request's size."""

TEXT_ALONE = "image: this model makes videos of text alone"


@dataclass(frozen=True, slots=True)
class WanSpec(ModelSpec):
    """Wan 2.1 and 2.2: text, or text and a picture, to a video."""

    video: VideoSpec
    takes_shift: bool = True
    boundary: float = 0.0
    """Timesteps below this share of all belong to a second transformer; 0 if there is none."""
    refine_guidance: float = 0.0
    """The guidance scale in the second transformer's steps."""
    flow_shift: float | None = None
    """The shift of the schedule instead of the scheduler's, or None. Published checkpoints carry the converter's
    default, not the value of Wan's makers."""
    expand_timesteps: bool = False
    """Whether a reference is the first latent frame, at a timestep of its own; else it comes in channels."""
    image_encoder: ImageEncoderSpec | None = None
    """The image encoder that sees the reference too; None if there is none."""

    @property
    def has_refiner(self) -> bool:
        return self.boundary > 0

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """The picture in RGB, in its own size if that is not beyond every video that can be made of it.

        Raises InvalidRequest for one that cannot be used, or if the model looks at no pictures.
        """
        if not self.max_references:
            raise InvalidRequest(TEXT_ALONE, "image")
        return fit_to_area(image, REFERENCE_AREA)

    def encoder_view(self, image: Image.Image) -> Image.Image | None:
        """The square in the middle of the picture, in RGB, in the size of the image encoder; None if there is none."""
        from PIL.Image import Resampling

        if self.image_encoder is None:
            return None
        side, short = self.image_encoder.side, min(image.size)
        width, height = (int(side * pixels / short) for pixels in image.size)
        return centre_crop(image.convert("RGB").resize((width, height), Resampling.BICUBIC), side, side)

    def edit_size(self, references: Sequence[Size]) -> Size:
        """About as many pixels as by default, in the aspect of the picture and in whole tokens."""
        if not references:
            return self.size
        area, aspect = self.size.width * self.size.height, references[0].width / references[0].height
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        return Size(width - width % self.multiple, height - height % self.multiple)


def read_spec(checkpoint: Path) -> WanSpec:
    """The spec of a checkpoint; a `generation_config.json` at its root overrides the family's defaults.

    Raises InvalidCheckpoint for a Wan that is not a Wan 2.1 or 2.2 of text or a picture to video.
    """
    variant = read_variant(checkpoint)
    defaults, vae = variant.defaults, read_configuration(checkpoint, VAE)
    patch = require(read_configuration(checkpoint, TRANSFORMER), "patch_size", checkpoint / TRANSFORMER)
    spec = WanSpec(
        size=defaults.size,
        steps=defaults.steps,
        guidance=defaults.guidance,
        multiple=vae.get("scale_factor_spatial", 8) * patch[-1],
        video=VideoSpec(defaults.frames, vae.get("scale_factor_temporal", 4), defaults.rate),
        min_references=int(variant.of_picture),
        max_references=int(variant.of_picture or variant.expand_timesteps),
        boundary=variant.boundary,
        refine_guidance=defaults.refine_guidance,
        expand_timesteps=variant.expand_timesteps,
        image_encoder=variant.image_encoder,
    )
    return _override_steps(_override_frames(override(spec, checkpoint), checkpoint), checkpoint)


def _override_steps(spec: WanSpec, checkpoint: Path) -> WanSpec:
    """`spec` with the guidance of the second transformer and the shift of `generation_config.json`. As in a request,
    `guidance_scale` alone is for both transformers."""
    file = checkpoint / OVERRIDES
    values = read_configuration(checkpoint, OVERRIDES) if file.exists() else {}
    guidance = values.get("guidance_scale_2", values.get("guidance_scale", spec.refine_guidance))
    shift = values.get("flow_shift", 1)
    if type(guidance) not in (int, float) or not math.isfinite(guidance):
        raise InvalidCheckpoint(f"{file}: guidance_scale_2 must be a number, not {guidance!r}")
    if type(shift) not in (int, float) or not 0 < shift < math.inf:
        raise InvalidCheckpoint(f"{file}: flow_shift must be a positive number, not {shift!r}")
    return replace(spec, refine_guidance=float(guidance), flow_shift=values.get("flow_shift"))


def _override_frames(spec: WanSpec, checkpoint: Path) -> WanSpec:
    file = checkpoint / OVERRIDES
    values = read_configuration(checkpoint, OVERRIDES) if file.exists() else {}
    frames, multiple = values.get("num_frames", spec.video.frames), spec.video.multiple
    if type(frames) is not int or frames < 1 or frames % multiple != 1:
        raise InvalidCheckpoint(f"{file}: num_frames must be one more than a multiple of {multiple}, not {frames!r}")
    return replace(spec, video=replace(spec.video, frames=frames))
