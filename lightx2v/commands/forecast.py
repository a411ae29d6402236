"""What a model would take on a card, and how long a request would: from headers and configurations alone.

The sizes and the plan are those of a server. The seconds are an estimate, which `docs/tools.md` compares with what was
measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightx2v.checkpoint import read_stages
from lightx2v.commands.cards import DISK, GIB, Card
from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidSettings, OutOfMemory
from lightx2v.residency import plan as plans
from lightx2v.residency.plan import Share, StageSize
from lightx2v.residency.width import Cohort, cohorts
from lightx2v.stages.build import FP8_CAPABILITY, load_stage
from lightx2v.stages.stage import Stage
from lightx2v.types import GenerateRequest
from lightx2v.weights.planned_card import PlannedCard

CONTEXT = 600 << 20
"""Device bytes that one stage's process takes besides its lease: 512 to 640 MiB were measured."""

SERVING_SECONDS = 0.05
"""Seconds of a request in no stage, through HTTP and Ray: 40 to 60 ms were measured."""

LAUNCH_SECONDS = 0.02
"""Seconds of an encoder in launching its kernels, which are small: an H200 took 18 to 27 ms for 1 to 5 TFLOP."""

PROMPT_TOKENS = 512

DECODE_FLOPS, ENCODE_FLOPS = 25e6, 15e6
"""Operations at a transformer's rate that take as long as an autoencoder takes for a pixel, out and in. Counted are 10
million; convolutions reach less than half of the rate (H200: 42 and 26 ms for 1024 x 1024)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One stage on the card."""

    size: StageSize
    cohort: Cohort
    host_bytes: int
    seconds: float
    """Of computation, in all uses."""

    @property
    def share(self) -> Share:
        """The share of a lone request."""
        return self.cohort.narrow

    def seconds_together(self, link: float) -> float:
        """Seconds of each request while as many as may run together do."""
        wide = self.cohort.wide
        return self.seconds + plans.exposed(self.size, wide, wide.width) / (wide.width * link)


@dataclass(frozen=True, slots=True)
class Forecast:
    """A model on one card."""

    parts: tuple[Part, ...]
    link: float

    @property
    def host_bytes(self) -> int:
        """Host bytes of all weights."""
        return sum(part.host_bytes for part in self.parts)

    @property
    def moved(self) -> int:
        """Bytes that cross the link for a request."""
        return sum(plans.moved(part.size, part.share) for part in self.parts)

    @property
    def seconds(self) -> float:
        """Seconds of a request, the others before it being alike: all computation, and what of the link's work none of
        it hides."""
        computed = sum(part.seconds for part in self.parts)
        exposed = sum(plans.exposed(part.size, part.share) for part in self.parts)
        return SERVING_SECONDS + computed + exposed / self.link

    @property
    def per_second(self) -> float:
        """Requests a second while many wait: stages of different requests take turns at the card."""
        return 1 / sum(part.seconds_together(self.link) for part in self.parts)


def forecast(settings: EngineSettings, request: GenerateRequest, card: Card) -> Forecast:
    """What `request` takes on `card`, within the settings' budget.

    Raises InvalidCheckpoint, OutOfMemory if it cannot run there at all, and InvalidSettings if the card lacks fp8."""
    if settings.fp8 and card.capability < FP8_CAPABILITY:
        raise InvalidSettings("it has no products in fp8")
    link = DISK if settings.lazy_load else card.link
    device = PlannedCard(card.memory, link, card.rate)
    stages = [load_stage(name, settings, device) for name in read_stages(settings)]
    sizes = tuple(stage.size(request) for stage in stages)
    taken = CONTEXT * len(stages)
    budget = min(settings.gpu_budget or card.memory, card.memory) - taken
    if budget <= 0:
        raise OutOfMemory(f"{len(stages)} CUDA processes alone take {taken / GIB:.2f} GiB")
    planned = plans.shares(settings.policy, sizes, budget)
    widths = cohorts(settings.policy, sizes, planned, budget)
    parts = (
        Part(size, widths[size.stage], stage.host_bytes, _seconds(stage, size, request, device))
        for stage, size in zip(stages, sizes, strict=True)
    )
    return Forecast(tuple(parts), link)


def _seconds(stage: Stage[Any], size: StageSize, request: GenerateRequest, card: PlannedCard) -> float:
    """Seconds of computation that the request takes in this stage."""
    if size.stage == "encode":
        weights = sum(size.units) // stage.component.dtype.itemsize
        return size.planned_passes * (LAUNCH_SECONDS + card.seconds(2 * weights * PROMPT_TOKENS))
    if size.stage == "decode":
        pixels = request.size.width * request.size.height * request.frames
        seen = sum(math.prod((size.width, size.height)) for size in request.references)
        return card.seconds(DECODE_FLOPS * pixels + ENCODE_FLOPS * seen)
    return stage.passes(request) * card.seconds(stage.component.flops(request))
