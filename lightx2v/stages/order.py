"""The order in which a request passes the stages, as data. `Pipeline` follows it in one process, the server's graph
across processes. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightx2v.stages.interface import StageMethod
from lightx2v.types import Latents, Reference, StageName


def _has_steps_left(latents: Latents) -> bool:
    return bool(latents.history)


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a stage, which makes `output`. `inputs` maps fields of StageInputs to the names of earlier outputs,
    or to keys of `brought`.

    If `only_if` is false for the last input, the call is skipped, and that input is the output.
    """

    output: str
    stage: StageName
    method: StageMethod
    inputs: Mapping[str, str]
    is_shared: bool = False
    """Whether all pictures of one prompt have the same output."""
    only_if: Callable[[Any], bool] | None = None


ENCODE = Step("conditioning", "encode", "run", {"pictures": "views"}, is_shared=True)
ENCODE_REFERENCES = Step(
    "encoded", "decode", "encode", {"mask": "mask", "pictures": "fitted"}, is_shared=True, only_if=bool
)
DENOISE = Step("latents", "denoise", "run", {"conditioning": "conditioning", "references": "encoded"})
REFINE = Step("refined", "refine", "run", {**DENOISE.inputs, "latents": "latents"}, only_if=_has_steps_left)
KEPT = {"mask": "mask", "pictures": "kept"}
DECODE = Step("made", "decode", "run", {**KEPT, "latents": "latents"})


def steps(stages: Collection[StageName]) -> tuple[Step, ...]:
    """All steps of a model with these stages, in order. The last one makes the picture or the video."""
    if "refine" not in stages:
        return ENCODE, ENCODE_REFERENCES, DENOISE, DECODE
    return ENCODE, ENCODE_REFERENCES, DENOISE, REFINE, replace(DECODE, inputs={**KEPT, "latents": REFINE.output})


def brought(references: Sequence[Reference]) -> dict[str, Any]:
    """The inputs that no step makes: the references as pictures for the encoder and for the autoencoder, the mask, and
    the picture that it keeps a part of."""
    masked = [reference for reference in references if reference.mask is not None]
    return {
        "views": tuple(reference.encoder_view for reference in references if reference.encoder_view is not None),
        "fitted": tuple(reference.fitted for reference in references),
        "mask": masked[0].mask if masked else None,
        "kept": tuple(reference.fitted for reference in masked),
    }
