"""Requests to a model: the one that is planned for, those that users make, and what one may ask. Free of torch."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping, Sequence
from typing import TypeVar

from lightx2v.errors import InvalidRequest
from lightx2v.limits import RANDOM_SEEDS, Limits
from lightx2v.models.spec import ModelSpec
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
    strength: float | None = None,
    frames: int | None = None,
    negative_prompt: str = "",
    loras: Sequence[ChosenLora] = (),
    shift: float | None = None,
) -> GenerateRequest:
    """A request with defaults for what is None, those of its LoRAs before the model's, and a seed that is drawn; still
    to be checked.

    `references`: the sizes of the fitted ones. Raises InvalidRequest for a strength that means nothing, and for LoRAs
    whose defaults differ.
    """
    recipes = {lora.name: spec.recipes[lora.name] for lora in loras if lora.name in spec.recipes}
    steps = _agreed("num_inference_steps", steps, {name: recipe.steps for name, recipe in recipes.items()})
    guidance = _agreed("guidance_scale", guidance, {name: recipe.guidance for name, recipe in recipes.items()})
    shift = _agreed("shift", shift, {name: recipe.shift for name, recipe in recipes.items()})
    return GenerateRequest(
        id=str(uuid.uuid4()),
        prompt=prompt,
        size=size or spec.edit_size(references),
        steps=spec.steps if steps is None else steps,
        seed=secrets.randbelow(RANDOM_SEEDS) if seed is None else seed,
        guidance=spec.guidance if guidance is None else guidance,
        refine_guidance=guidance,
        negative_prompt=negative_prompt,
        references=tuple(references),
        strength=choose_strength(strength, spec, len(references)),
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


def choose_strength(asked: float | None, spec: ModelSpec, references: int) -> float:
    """The strength of a request. Raises InvalidRequest if `asked` is out of range, or has no meaning here."""
    if asked is None:
        return STRENGTH
    if not spec.starts_from_picture:
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
