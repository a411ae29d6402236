"""The sizes and seconds of models for the simulator, as they were measured."""

from __future__ import annotations

from dataclasses import dataclass

from lightx2v.residency.plan import StageSize
from lightx2v.types import StageName

GB = 10**9
LINK = 55.3e9
"""Bytes per second from pinned memory to an H200, over PCIe 5 x16."""
CONTEXT = 604 * 10**6
"""Bytes of a process's CUDA context, from `results/2026-11-28-h200-klein-9b.json`."""


@dataclass(frozen=True, slots=True)
class StageModel:
    """One stage of a model, and the pace of its rounds."""

    size: StageSize
    rounds: int
    seconds: float
    """Of one round's computation for one member."""

    @property
    def name(self) -> StageName:
        return self.size.stage

    @property
    def work(self) -> float:
        """Seconds of computation of one request."""
        return self.rounds * self.seconds


@dataclass(frozen=True, slots=True)
class Model:
    """A model with the stages that a request passes, in order."""

    name: str
    stages: tuple[StageModel, ...]

    @property
    def seconds(self) -> float:
        """Seconds of computation of one request."""
        return sum(stage.work for stage in self.stages)

    @property
    def reachable(self) -> int:
        """Bytes of all its weights."""
        return sum(stage.size.reachable for stage in self.stages)


def _stage(
    name: StageName, units: tuple[int, ...], rest: int, activation_bytes: int, rounds: int, seconds: float, width: int
) -> StageModel:
    """The ring holds two of the largest units. A member keeps its states and conditioning: 0.1 GB."""
    slot_bytes, overlap_bytes = 2 * max(units, default=0), int(0.9 * LINK * seconds)
    size = StageSize(name, units, rest, activation_bytes, slot_bytes, rounds, overlap_bytes, GB // 10, width)
    return StageModel(size, rounds, seconds)


def klein(name: str = "klein-9b", width: int = 8) -> Model:
    """FLUX.2-klein-9B at 1024x1024 in 4 steps: 0.558 s of computation on an H200, of which a step takes 0.127 and the
    decoder 0.03 (`results/2026-11-28-h200-klein-9b.json`). Weights: as published, in bf16."""
    double, single, layer = 872 * 10**6, 436 * 10**6, 386 * 10**6
    return Model(
        name,
        (
            _stage("encode", (layer,) * 27, 53 * 10**6, 300 * 10**6, 1, 0.020, width),
            _stage("denoise", (double,) * 8 + (single,) * 24, 784 * 10**6, 820 * 10**6, 4, 0.127, width),
            _stage("decode", (), 172 * 10**6, 900 * 10**6, 1, 0.030, width),
        ),
    )


def z_image(name: str = "z-image-turbo", width: int = 8) -> Model:
    """Z-Image-Turbo at 1024x1024 in 8 steps: 0.842 s of computation (`results/2026-11-28-h100-z-image-turbo.json`)."""
    block, layer = 375 * 10**6, 202 * 10**6
    return Model(
        name,
        (
            _stage("encode", (layer,) * 35, 0, 300 * 10**6, 1, 0.015, width),
            _stage("denoise", (block,) * 32, 300 * 10**6, 700 * 10**6, 8, 0.0995, width),
            _stage("decode", (), 168 * 10**6, 900 * 10**6, 1, 0.031, width),
        ),
    )
