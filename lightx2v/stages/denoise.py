"""Conditioning to final latents, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lightx2v.config import EngineSettings
from lightx2v.core import Conditioning, GenerateRequest, Latents, Progress, StageName
from lightx2v.errors import NonFinite
from lightx2v.models.component import Denoiser
from lightx2v.stages.stage import Cancel, Stage, check
from lightx2v.weights.adapters import Adapters
from lightx2v.weights.device import Device

Report = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """For who does not want to know."""


class DenoiseStage(Stage[Denoiser]):
    name: StageName = "denoise"

    def __init__(
        self, component: Denoiser, checkpoint: Path, settings: EngineSettings, device: Device, loras: Mapping[str, Path]
    ) -> None:
        super().__init__(component, checkpoint, settings, device)
        self._adapters = Adapters(component, loras, device, settings.lazy_load)

    def workspace(self, request: GenerateRequest) -> int:
        return super().workspace(request) + self._adapters.workspace(request)

    def passes(self, request: GenerateRequest) -> int:
        return self.component.count(request)

    def run(
        self,
        request: GenerateRequest,
        conditioning: Conditioning,
        references: Sequence[Latents],
        cancelled: Cancel,
        report: Report,
    ) -> Latents:
        """The final latents on the host. Looks for a cancellation before every step."""
        check(cancelled)
        total = self.passes(request)
        with self._adapters.beside(request):
            report(Progress(0, total))
            steps = self.component.steps(request, conditioning, references, self.device.torch_device)
            for done, latents in enumerate(steps, start=1):
                last = latents
                report(Progress(done, total))
                if done < total:
                    check(cancelled)
        tokens = last.tokens.cpu()
        if not torch.isfinite(tokens).all():
            raise NonFinite(f"request {request.id}: the transformer produced values that are not finite")
        return replace(last, tokens=tokens)

    def close(self) -> None:
        self._adapters.close()
        super().close()
