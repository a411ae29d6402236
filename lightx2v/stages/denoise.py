"""The denoising stages: conditioning to final latents, by one transformer or by two in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch

from lightx2v.config import EngineSettings
from lightx2v.errors import NonFinite
from lightx2v.models.component import Denoiser, Refiner
from lightx2v.models.sampler import SamplingState, sample
from lightx2v.models.visits import Move, Visits, movable, within
from lightx2v.stages.interface import Control, StageInputs, need
from lightx2v.stages.stage import Stage
from lightx2v.types import GenerateRequest, Latents, LoraFile, Progress, StageName
from lightx2v.weights.active_loras import ActiveLoras
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

    def member_bytes(self, request: GenerateRequest) -> int:
        return super().member_bytes(request) + self._adapters.workspace(request)

    def passes(self, request: GenerateRequest) -> int:
        return self.component.num_steps(request)

    def walk(
        self, request: GenerateRequest, start: Callable[[], SamplingState[Any]], control: Control
    ) -> Visits[Latents]:
        """The latents after all steps of the state that `start` returns, on the host. Raises Cancelled before a step,
        and NonFinite."""
        control.check()
        before, after = self.component.steps_elsewhere(request)
        total = before + self.passes(request) + after

        def stepped() -> None:
            control.report(Progress(before + state.step - first, total))
            if state.step < state.stop:
                control.check()

        with self._adapters.chosen(request, self.unit_paths) as loras:
            with loras.active():
                state = start()
            first = state.step
            control.report(Progress(before, total))
            steps = within(loras.active, sample(state, self.component.velocity, stepped))
            yield from movable(Mover(state, loras).move, steps)
        last = self.component.latents(state)
        if not torch.isfinite(last.tokens).all():
            raise NonFinite(f"request {request.id}: the transformer produced values that are not finite")
        return replace(last, tokens=last.tokens.cpu(), history=tuple(part.cpu() for part in last.history))

    def close(self) -> None:
        self._adapters.close()
        super().close()


class DenoiseStage(StepStage[Denoiser]):
    """Turns noise into latents, by all steps, or by the first ones of a model with two transformers."""

    name: StageName = "denoise"

    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Visits[Latents]:
        """The latents on the host; they have a history if steps are left to the refine stage."""
        conditioning, device = need(inputs.conditioning), self.device.torch_device
        start = partial(self.component.start, request, conditioning, inputs.references, device)
        return self.walk(request, start, control)


class RefineStage(StepStage[Refiner]):
    """Takes the last steps, with the second transformer of a model that has two."""

    name: StageName = "refine"

    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Visits[Latents]:
        """The final latents on the host. `inputs.latents`: the output of the denoise stage, with its history."""
        conditioning, begun, device = need(inputs.conditioning), need(inputs.latents), self.device.torch_device
        start = partial(self.component.restart, request, conditioning, inputs.references, begun, device)
        return self.walk(request, start, control)


class Mover:
    """Moves one request's tensors off the device between two steps, and back."""

    def __init__(self, state: SamplingState[Any], loras: ActiveLoras) -> None:
        self._state, self._loras = state, loras
        self._parked: BytesIO | None = None

    def move(self, to: Move) -> None:
        """Does nothing if the tensors are there already."""
        if to is Move.AWAY and self._parked is None:
            self._parked = self._state.park()
            self._loras.close()
        elif to is Move.BACK and self._parked is not None:
            self._state.unpark(self._parked)
            self._parked = None
            self._loras.bring()
