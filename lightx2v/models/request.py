"""Requests to a model: the one that is planned for, those that users make, and what one may ask. Free of torch."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping, Sequence
from typing import TypeVar

from lightx2v.errors import InvalidRequest
from lightx2v.limits import RANDOM, RANDOM_SEEDS, Limits
from lightx2v.models.reference_image import check_takes_mask
from lightx2v.models.spec import ModelSpec
from lightx2v.sizes import Aspect
from lightx2v.types import STRENGTH, ChosenLora, GenerateRequest, Size

T = TypeVar("T", int, float)


def planning_request(spec: ModelSpec) -> GenerateRequest:
    """The request that a card's memory is planned for: all defaults, and no more references than the model needs. A
    larger request makes other stages give way while it runs."""
    frames = _default_frames(spec)
    references = (spec.size,) * spec.min_references
    return GenerateRequest("plan", "", spec.size, spec.steps, 0, spec.guidance, references=references, frames=frames)


def complete(
    prompt: str,
    spec: ModelSpec,
    references: Sequence[Size],
    *,
    size: Size | None = None,
    steps: int | None = None,
    seed: int | None = None,
    guidance: float | None = None,
    refine_guidance: float | None = None,
    strength: float | None = None,
    frames: int | None = None,
    negative_prompt: str = "",
    loras: Sequence[ChosenLora] = (),
    shift: float | None = None,
    is_masked: bool = False,
) -> GenerateRequest:
    """A request with defaults for what is None, those of its LoRAs before the model's, and a seed that is drawn; still
    to be checked.

    `references`: the sizes of the fitted ones. `is_masked`: whether the first one has a mask; then the picture gets its
    size. `guidance` alone is for both transformers of a model with two. Raises InvalidRequest for a strength or a
    `refine_guidance` that means nothing, and for LoRAs whose defaults differ.
    """
    recipes = {lora.name: spec.recipes[lora.name] for lora in loras if lora.name in spec.recipes}
    steps = _agreed("num_inference_steps", steps, {name: recipe.steps for name, recipe in recipes.items()})
    guidance = _agreed("guidance_scale", guidance, {name: recipe.guidance for name, recipe in recipes.items()})
    shift = _agreed("shift", shift, {name: recipe.shift for name, recipe in recipes.items()})
    return GenerateRequest(
        id=str(uuid.uuid4()),
        prompt=prompt,
        size=size or spec.edit_size(references[:1] if is_masked else references),
        steps=spec.steps if steps is None else steps,
        seed=secrets.randbelow(RANDOM_SEEDS) if seed in (None, RANDOM) else seed,
        guidance=spec.guidance if guidance is None else guidance,
        refine_guidance=choose_refine_guidance(refine_guidance, spec, guidance),
        negative_prompt=negative_prompt,
        references=tuple(references),
        strength=choose_strength(strength, spec, len(references), is_masked),
        is_masked=is_masked,
        loras=tuple(loras),
        shift=shift,
        frames=_default_frames(spec) if frames is None else frames,
    )


def check_request(request: GenerateRequest, spec: ModelSpec, limits: Limits) -> None:
    """Raises InvalidRequest for a request beyond `limits` or beyond the model."""
    limits.check(request, spec.multiple, spec.video)
    references = len(request.references)
    if references < spec.min_references:
        raise InvalidRequest(f"image: this model needs at least {spec.min_references} to work on", "image")
    if request.shift is not None and not spec.takes_shift:
        raise InvalidRequest("shift: this model computes its own from the size of the picture", "shift")
    if references > spec.max_references:
        raise InvalidRequest(f"image: this model takes at most {spec.max_references}, got {references}", "image")
    if request.is_masked:
        _check_canvas(request, spec)


def _check_canvas(request: GenerateRequest, spec: ModelSpec) -> None:
    """Raises InvalidRequest if the model takes no mask, or if the mask belongs to no picture of the asked size."""
    check_takes_mask(spec)
    if not request.references:
        raise InvalidRequest("mask: there is no picture that it belongs to", "mask")
    canvas, *_ = request.references
    if request.size != canvas:
        raise InvalidRequest(f"size: with a mask it must be that of the first picture, {canvas}, or auto", "size")


def choose_size(asked: Size | Aspect | None, spec: ModelSpec, limits: Limits) -> Size | None:
    """The size to make, still to be checked; None for the model's own. An aspect becomes the nearest size of the
    default area, and so does any other size if `limits` say so. Raises InvalidRequest for an aspect beyond `limits`."""
    if isinstance(asked, Aspect):
        if max(asked.width, asked.height) > limits.max_aspect * min(asked.width, asked.height):
            most = limits.max_aspect
            raise InvalidRequest(f"size: the longer side may be at most {most} times the shorter, got {asked}", "size")
        return limits.nearest(asked.of_area(spec.size.width * spec.size.height), spec.multiple)
    if asked is not None and limits.size_policy == "nearest":
        return limits.nearest(asked, spec.multiple)
    return asked


def choose_loras(lora: str | None, scale: float | None, loras: Sequence[ChosenLora] | None) -> tuple[ChosenLora, ...]:
    """The LoRAs of a request that names one with its scale, or several, but not both. Raises InvalidRequest."""
    if loras is not None and (lora, scale) != (None, None):
        raise InvalidRequest("loras: give these or lora with lora_scale, not both", "loras")
    if lora is None and scale not in (None, 1):
        raise InvalidRequest("lora_scale: has no meaning without a lora", "lora_scale")
    chosen = loras or (() if lora is None else (ChosenLora(lora, 1.0 if scale is None else scale),))
    if len({one.name for one in chosen}) < len(chosen):
        raise InvalidRequest("loras: one of them is named twice", "loras")
    return tuple(chosen)


def choose_refine_guidance(asked: float | None, spec: ModelSpec, guidance: float | None) -> float | None:
    """The guidance scale of the second transformer: `asked`, or else `guidance`. Raises InvalidRequest if there is no
    second transformer."""
    if asked is None:
        return guidance
    if not spec.has_refiner:
        raise InvalidRequest("guidance_scale_2: this model has one transformer; leave it out", "guidance_scale_2")
    return asked


def choose_strength(asked: float | None, spec: ModelSpec, references: int, is_masked: bool = False) -> float:
    """The strength of a request; the default with a mask is 1, which makes the masked part from pure noise. Raises
    InvalidRequest if `asked` is out of range, or has no meaning here."""
    if asked is None:
        return 1.0 if is_masked else STRENGTH
    if not (spec.starts_from_picture or is_masked):
        raise InvalidRequest("strength: this model does not start from a picture", "strength")
    if not references:
        raise InvalidRequest("strength: there is no picture to start from", "strength")
    if not 0 < asked <= 1:
        raise InvalidRequest(f"strength: must be above 0 and at most 1, got {asked}", "strength")
    return asked


def _agreed(param: str, asked: T | None, stated: Mapping[str, T | None]) -> T | None:
    """What was asked for, or else what the LoRAs state by name. Raises InvalidRequest if they differ."""
    if asked is not None:
        return asked
    known = {name: value for name, value in stated.items() if value is not None}
    if len(set(known.values())) > 1:
        made_for = ", ".join(f"{name} {value:g}" for name, value in known.items())
        raise InvalidRequest(f"{param}: the LoRAs were made for different ones ({made_for}); choose one", param)
    return next(iter(known.values()), None)


def _default_frames(spec: ModelSpec) -> int:
    return spec.video.frames if spec.video else 1
