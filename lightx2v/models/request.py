"""Requests to a model: the one that is planned for, those that users make, and what one may ask. Free of torch."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence

from lightx2v.errors import InvalidRequest
from lightx2v.limits import RANDOM, RANDOM_SEEDS, Limits
from lightx2v.models.spec import ModelSpec
from lightx2v.types import STRENGTH, GenerateRequest, Size


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
    lora: str | None = None,
    lora_scale: float = 1.0,
) -> GenerateRequest:
    """A request with the model's defaults for what is None, and a seed that is drawn; still to be checked.

    `references`: the sizes of the fitted ones. Raises InvalidRequest for a strength that means nothing.
    """
    return GenerateRequest(
        id=str(uuid.uuid4()),
        prompt=prompt,
        size=size or spec.edit_size(references),
        steps=spec.steps if steps is None else steps,
        seed=secrets.randbelow(RANDOM_SEEDS) if seed in (None, RANDOM) else seed,
        guidance=spec.guidance if guidance is None else guidance,
        refine_guidance=guidance,
        negative_prompt=negative_prompt,
        references=tuple(references),
        strength=choose_strength(strength, spec, len(references)),
        lora=lora,
        lora_scale=lora_scale,
        frames=_default_frames(spec) if frames is None else frames,
    )


def check_request(request: GenerateRequest, spec: ModelSpec, limits: Limits) -> None:
    """Raises InvalidRequest for a request beyond `limits` or beyond the model."""
    limits.check(request, spec.multiple, spec.video)
    references = len(request.references)
    if references < spec.min_references:
        raise InvalidRequest(f"image: this model needs at least {spec.min_references} to work on", "image")
    if references > spec.max_references:
        raise InvalidRequest(f"image: this model takes at most {spec.max_references}, got {references}", "image")


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


def _default_frames(spec: ModelSpec) -> int:
    return spec.video.frames if spec.video else 1
