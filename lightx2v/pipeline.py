"""All stages in one process, for the command line, and as the reference of tests and golden images."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from lightx2v.checkpoint import read_stages
from lightx2v.config import EngineSettings
from lightx2v.models.notices import Notice, ignored
from lightx2v.residency import plan as plans
from lightx2v.residency.plan import StageSize
from lightx2v.stages.build import check_loras, load_stage, open_device
from lightx2v.stages.interface import Control, Report, StageInputs, StageMethod, ignore
from lightx2v.stages.order import Step, brought, steps
from lightx2v.stages.stage import Stage
from lightx2v.types import GenerateRequest, Latents, Picture, Reference, StageName, Video

CONTEXT = 900 << 20
"""Device bytes that a CUDA process takes besides torch's allocations, with room to grow."""

UNWATCHED = Control()
"""The control of a run that is never cancelled and reports to nobody."""


log = logging.getLogger(__name__)


class Pipeline:
    """Runs the stages of one request at a time, in turn. They share the device as the settings say."""

    def __init__(self, settings: EngineSettings) -> None:
        cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
        self._settings = settings
        self._device = open_device("cuda" if cuda else "cpu", settings, f"process-{os.getpid()}")
        names = read_stages(settings)
        if settings.strict_loras:
            check_loras(settings)
        self._stages: dict[StageName, Stage[Any]] = {name: load_stage(name, settings, self._device) for name in names}
        self._steps = steps(names)
        self._shares = lru_cache(maxsize=8)(plans.shares)
        self._budget = (settings.gpu_budget or self._device.total()) - (CONTEXT if cuda else 0)

    def generate(
        self,
        request: GenerateRequest,
        references: Sequence[Reference] = (),
        report: Report = ignore,
    ) -> Picture | Video:
        """The picture or video of `request`. Raises OutOfMemory if the settings leave it too little memory."""
        return self.decode(request, self.latents(request, references, report), references)

    def latents(
        self,
        request: GenerateRequest,
        references: Sequence[Reference] = (),
        report: Report = ignore,
    ) -> Latents:
        """The final latents of `request`: all steps but the decoding."""
        for notice in self.notices(request):
            log.warning("%s", notice)
        values, (*before, _) = brought(references), self._steps
        for step in before:
            values[step.output] = self._follow(step, request, values, Control(report=report))
        latents: Latents = values[before[-1].output]
        return latents

    def notices(self, request: GenerateRequest) -> tuple[Notice, ...]:
        """The parts of `request` that have no effect."""
        encode = self._stages["encode"]
        return (*ignored(request, encode.component.spec), *encode.truncations(request))

    def decode(
        self, request: GenerateRequest, latents: Latents, references: Sequence[Reference] = ()
    ) -> Picture | Video:
        """The picture or video of final `latents`."""
        *_, before, last = self._steps
        made: Picture | Video = self._follow(last, request, brought(references) | {before.output: latents}, UNWATCHED)
        return made

    def close(self) -> None:
        """Returns all device and host memory."""
        for stage in self._stages.values():
            stage.close()

    def _follow(self, step: Step, request: GenerateRequest, values: Mapping[str, Any], control: Control) -> Any:
        """The output of a step. `values`: the given inputs and the outputs of earlier steps, by name."""
        inputs, stage = {field: values[name] for field, name in step.inputs.items()}, self._stages[step.stage]
        *_, last = inputs.values()
        if step.only_if is not None and not step.only_if(last):
            return last
        if step.method == "run" and (known := stage.recall(request)) is not None:
            return known
        return self.run_stage(step.stage, step.method, request, StageInputs(**inputs), control)

    def run_stage(
        self,
        name: StageName,
        method: StageMethod,
        request: GenerateRequest,
        inputs: StageInputs,
        control: Control = UNWATCHED,
    ) -> Any:
        """The output of one stage. Meanwhile the others keep the weights that the plan leaves them."""
        stage = self._stages[name]
        shares = self._shares(self._settings.policy, self.sizes(request), self._budget)
        for other in self._stages.values():
            if other is not stage:
                other.drop(shares[other.name].resident)
        grant = plans.grant(stage.size(request), shares[stage.name])
        return stage.perform(grant, method, request, inputs, control)

    def sizes(self, request: GenerateRequest) -> tuple[StageSize, ...]:
        """The device memory of each stage for a request like this one."""
        return tuple(stage.size(request) for stage in self._stages.values())
