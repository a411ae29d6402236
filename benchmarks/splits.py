"""Measures the transformer alone with more or fewer of its blocks on the card: seconds of a run, of its compute
and of its streaming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightx2v.pipeline import Pipeline
from lightx2v.residency.lease import Grant
from lightx2v.residency.plan import StageSize
from lightx2v.stages.interface import Control, StageInputs
from lightx2v.types import GenerateRequest

PARTS, TIMES = 8, 3


def measure_splits(
    pipeline: Pipeline, request: GenerateRequest, seconds: Callable[[], float], link: float
) -> list[dict[str, Any]]:
    """From all blocks resident to none. `seconds`: of the transformer's last run; `link`: bytes per second."""
    stage = pipeline._stages["denoise"]
    conditioning = pipeline.run_stage("encode", "run", request, StageInputs())
    size = stage.size(request)
    compute, found = 0.0, []
    for blocks in counts(len(size.units)):
        grant = grant_of(size, blocks)
        runs = []
        for _ in range(TIMES):
            stage.perform(grant, "run", request, StageInputs(conditioning=conditioning), Control())
            runs.append(seconds())
        streamed = size.reachable - grant.weights
        compute = compute or min(runs)
        bound = max(compute, size.planned_passes * streamed / link)
        figures = {"resident_blocks": blocks, "streamed_bytes_per_step": streamed, "seconds": min(runs)}
        found.append(figures | {"bound_seconds": bound, "over_bound": min(runs) / bound})
    return found


def counts(blocks: int) -> list[int]:
    """All, seven eighths, and so on to none: a pause shows most where all that streams is hidden just so."""
    return [blocks * part // PARTS for part in range(PARTS, -1, -1)]


def grant_of(size: StageSize, blocks: int) -> Grant:
    """For a run with so many blocks resident, the others streamed."""
    weights = size.prefixes()[blocks]
    return Grant(weights, size.activation_bytes, size.slot_bytes if weights < size.reachable else 0, weights)
