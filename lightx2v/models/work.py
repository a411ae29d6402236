"""The work of a request, as a multiple of that of its model's planned request. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

from lightx2v.models.request import planning_request
from lightx2v.models.spec import ModelSpec
from lightx2v.types import GenerateRequest, StageName

CONSTANT = 0.05
"""The share of a planned request that no size changes, such as its prompt."""
ATTENTION_TOKENS = 24_576
"""At this many tokens attention costs as much as all linear layers of a block. Of N tokens of d features, attention
takes 4 N^2 d operations and the linear layers 24 N d^2, so N = 6 d; here d is 4096."""


def work_of(requests: Sequence[GenerateRequest], spec: ModelSpec) -> float:
    """The work of requests that are made together: 1 is one planned request."""
    return sum(CONSTANT + (1 - CONSTANT) * stage_work("denoise", request, spec) for request in requests)


def stage_work(stage: StageName, request: GenerateRequest, spec: ModelSpec) -> float:
    """The work of one stage for a request: 1 is that for the planned request.

    An encoder's is about the same for all prompts, and an autoencoder's grows with the pixels. A transformer's grows
    with the steps, the prompts that each step evaluates, and the tokens, to a power between one and two.
    """
    if stage == "encode":
        return 1.0
    operations = _pixels if stage == "decode" else _transformer_operations
    return operations(request, spec) / operations(planning_request(spec), spec)


def _transformer_operations(request: GenerateRequest, spec: ModelSpec) -> float:
    """The operations of all steps; the unit is that of the linear layers for one token."""
    steps = request.steps * (request.strength if spec.has_strength(request) else 1.0)
    branches = 2 if spec.is_guided(request) else 1
    tokens = _tokens(request, spec)
    return steps * branches * tokens * (1 + tokens / ATTENTION_TOKENS)


def _tokens(request: GenerateRequest, spec: ModelSpec) -> float:
    """The tokens of the picture, and of the references where the transformer attends to them."""
    frames = 1 + (request.frames - 1) / spec.video.multiple if spec.video else 1
    attended = () if spec.starts_from_picture or spec.video else request.references
    pixels = frames * request.size.width * request.size.height + sum(one.width * one.height for one in attended)
    return pixels / spec.multiple**2


def _pixels(request: GenerateRequest, _: ModelSpec) -> float:
    """The pixels of the result and of the references."""
    sizes = (*(request.size,) * request.frames, *request.references)
    return float(sum(size.width * size.height for size in sizes))
