"""Wan 2.2's second transformer: it takes over where little noise is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lightx2v.core import Conditioning, GenerateRequest, Latents
from lightx2v.models.component import Refiner
from lightx2v.models.wan.denoiser import WanDenoiser
from lightx2v.models.wan.latents import to_grid


class WanRefiner(WanDenoiser, Refiner):
    """The same architecture with other weights, and another guidance scale."""

    def others(self, request: GenerateRequest) -> tuple[int, int]:
        return self.schedule.high(request.steps), 0

    def guidance(self, request: GenerateRequest) -> float:
        return self.recipe.refine_guidance if request.refine_guidance is None else request.refine_guidance

    def resume(
        self,
        request: GenerateRequest,
        conditioning: Conditioning,
        references: Sequence[Latents],
        begun: Latents,
        device: torch.device,
    ) -> Iterator[Latents]:
        condition = self.condition(request, references, device)
        solver = self.schedule.solver(request.steps, tuple(part.to(device) for part in begun.history))
        return self.walk(request, conditioning, condition, solver, to_grid(begun)[None].to(device))
