"""Wan 2.2's second transformer: it takes over where little noise is left."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightx2v.models.component import Refiner
from lightx2v.models.sampler import SamplingState
from lightx2v.models.wan.denoiser import WanConditions, WanDenoiser
from lightx2v.models.wan.latents import to_grid
from lightx2v.types import Conditioning, GenerateRequest, Latents


class WanRefiner(WanDenoiser, Refiner[WanConditions]):
    """The denoiser of the last steps: the same architecture with other weights and another guidance scale."""

    def steps_elsewhere(self, request: GenerateRequest) -> tuple[int, int]:
        return self.schedule.high(request.steps, request.shift), 0

    def guidance(self, request: GenerateRequest) -> float:
        return self.spec.refine_guidance if request.refine_guidance is None else request.refine_guidance

    def restart(
        self,
        request: GenerateRequest,
        conditioning: Conditioning,
        references: Sequence[Latents],
        begun: Latents,
        device: torch.device,
    ) -> SamplingState[WanConditions]:
        stepper = self.schedule.stepper(request.steps, request.shift, tuple(part.to(device) for part in begun.history))
        conditions = self.conditions(request, conditioning, references, stepper, device)
        return self.state(request, conditions, stepper, to_grid(begun)[None].to(device))
