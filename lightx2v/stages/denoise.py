"""Conditioning to final latents, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lightx2v.core import Conditioning, GenerateRequest, Latents, Progress, StageName
from lightx2v.errors import NonFinite
from lightx2v.models.component import Denoiser
from lightx2v.stages.stage import Cancel, Stage, check

Report = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """For who does not want to know."""


class DenoiseStage(Stage[Denoiser]):
    name: StageName = "denoise"

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
        steps = self.component.steps(request, conditioning, references, self.device.torch_device)
        for done, latents in enumerate(steps, start=1):
            last = latents
            report(Progress(done, request.steps))
            if done < request.steps:
                check(cancelled)
        tokens = last.tokens.cpu()
        if not torch.isfinite(tokens).all():
            raise NonFinite(f"request {request.id}: the transformer produced values that are not finite")
        return Latents(tokens, last.rows, last.columns)
