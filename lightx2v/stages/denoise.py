"""Conditioning to final latents, step by step, by one transformer or by two in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from lightx2v.config import EngineSettings
from lightx2v.core import Conditioning, GenerateRequest, Latents, Progress, StageName
from lightx2v.errors import NonFinite
from lightx2v.models.component import Denoiser, Refiner
from lightx2v.stages.stage import Cancel, Stage, check
from lightx2v.weights.adapters import Adapters
from lightx2v.weights.device import Device

D = TypeVar("D", bound=Denoiser)
Report = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """For who does not want to know."""


class StepStage(Stage[D]):
    """What takes steps with a transformer."""

    def __init__(
        self,
        component: D,
        checkpoint: Path,
        settings: EngineSettings,
        device: Device,
        planned: GenerateRequest,
        loras: Mapping[str, Path],
    ) -> None:
        super().__init__(component, checkpoint, settings, device, planned)
        self._adapters = Adapters(component, loras, device, settings.lazy_load)

    def workspace(self, request: GenerateRequest) -> int:
        return super().workspace(request) + self._adapters.workspace(request)

    def passes(self, request: GenerateRequest) -> int:
        return self.component.count(request)

    def walk(self, request: GenerateRequest, steps: Iterator[Latents], cancelled: Cancel, report: Report) -> Latents:
        """The latents after all of `steps`, on the host. Looks for a cancellation before every step."""
        check(cancelled)
        before, after = self.component.others(request)
        total = before + self.passes(request) + after
        with self._adapters.activate(request):
            report(Progress(before, total))
            for done, latents in enumerate(steps, start=before + 1):
                last = latents
                report(Progress(done, total))
                if done < total:
                    check(cancelled)
        if not torch.isfinite(last.tokens).all():
            raise NonFinite(f"request {request.id}: the transformer produced values that are not finite")
        return replace(last, tokens=last.tokens.cpu(), history=tuple(part.cpu() for part in last.history))

    def close(self) -> None:
        self._adapters.close()
        super().close()


class DenoiseStage(StepStage[Denoiser]):
    name: StageName = "denoise"

    def run(
        self,
        request: GenerateRequest,
        conditioning: Conditioning,
        references: Sequence[Latents],
        cancelled: Cancel,
        report: Report,
    ) -> Latents:
        """The final latents on the host; with a history where steps are left to the refine stage."""
        steps = self.component.steps(request, conditioning, references, self.device.torch_device)
        return self.walk(request, steps, cancelled, report)


class RefineStage(StepStage[Refiner]):
    name: StageName = "refine"

    def run(
        self,
        request: GenerateRequest,
        conditioning: Conditioning,
        references: Sequence[Latents],
        begun: Latents,
        cancelled: Cancel,
        report: Report,
    ) -> Latents:
        """The final latents on the host. `begun`: what the denoise stage made, with its history."""
        steps = self.component.resume(request, conditioning, references, begun, self.device.torch_device)
        return self.walk(request, steps, cancelled, report)
