"""The denoising stages: conditioning to final latents, by one transformer or by two in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from lightx2v.config import EngineSettings
from lightx2v.errors import NonFinite
from lightx2v.models.component import Denoiser, Refiner
from lightx2v.stages.interface import Control, StageInputs, need
from lightx2v.stages.stage import Stage
from lightx2v.types import GenerateRequest, Latents, LoraFile, Progress, StageName
from lightx2v.weights.adapters import Adapters
from lightx2v.weights.device import Device

D = TypeVar("D", bound=Denoiser)


class StepStage(Stage[D]):
    """A stage that takes denoising steps with one transformer."""

    def __init__(
        self,
        component: D,
        places: Sequence[Path],
        settings: EngineSettings,
        device: Device,
        planned: GenerateRequest,
        loras: Mapping[str, LoraFile],
    ) -> None:
        super().__init__(component, places, settings, device, planned)
        self._adapters = Adapters(component, loras, device, settings.lazy_load)
        component.host_loras = self._adapters.on_host

    def activation_bytes(self, request: GenerateRequest) -> int:
        return super().activation_bytes(request) + self._adapters.workspace(request)

    def passes(self, request: GenerateRequest) -> int:
        return self.component.num_steps(request)

    def walk(self, request: GenerateRequest, steps: Iterator[Latents], control: Control) -> Latents:
        """The latents after all `steps`, on the host. Raises Cancelled before a step, and NonFinite."""
        control.check()
        before, after = self.component.steps_elsewhere(request)
        total = before + self.passes(request) + after
        with self._adapters.activate(request):
            control.report(Progress(before, total))
            for done, latents in enumerate(steps, start=before + 1):
                last = latents
                control.report(Progress(done, total))
                if done < total:
                    control.check()
        if not torch.isfinite(last.tokens).all():
            raise NonFinite(f"request {request.id}: the transformer produced values that are not finite")
        return replace(last, tokens=last.tokens.cpu(), history=tuple(part.cpu() for part in last.history))

    def close(self) -> None:
        self._adapters.close()
        super().close()


class DenoiseStage(StepStage[Denoiser]):
    """Turns noise into latents, by all steps, or by the first ones of a model with two transformers."""

    name: StageName = "denoise"

    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Latents:
        """The latents on the host; they have a history if steps are left to the refine stage."""
        conditioning, device = need(inputs.conditioning), self.device.torch_device
        return self.walk(request, self.component.steps(request, conditioning, inputs.references, device), control)


class RefineStage(StepStage[Refiner]):
    """Takes the last steps, with the second transformer of a model that has two."""

    name: StageName = "refine"

    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Latents:
        """The final latents on the host. `inputs.latents`: the output of the denoise stage, with its history."""
        conditioning, begun, device = need(inputs.conditioning), need(inputs.latents), self.device.torch_device
        steps = self.component.resume(request, conditioning, inputs.references, begun, device)
        return self.walk(request, steps, control)
