"""Requests to a model: the one that is planned for, and what one may ask. Free of torch."""

from __future__ import annotations

from lightx2v.core import STRENGTH, GenerateRequest
from lightx2v.errors import InvalidRequest
from lightx2v.limits import Limits
from lightx2v.models.spec import ModelSpec


def planning_request(spec: ModelSpec) -> GenerateRequest:
    """The request that a card's memory is planned for: all defaults, and no more references than the model needs. A
    larger request makes other stages give way while it runs."""
    frames = spec.clip.frames if spec.clip else 1
    references = (spec.size,) * spec.min_references
    return GenerateRequest("plan", "", spec.size, spec.steps, 0, spec.guidance, references=references, frames=frames)


def check_request(request: GenerateRequest, spec: ModelSpec, limits: Limits) -> None:
    """Raises InvalidRequest for a request beyond `limits` or beyond the model."""
    limits.check(request, spec.multiple, spec.clip)
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
