"""The stages in one process: the reference, the command line, the golden images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from lightx2v.checkpoint import read_stages
from lightx2v.config import EngineSettings
from lightx2v.core import GenerateRequest, Latents, Picture, Reference, StageName, Video
from lightx2v.residency import plan as plans
from lightx2v.residency.plan import StageSize
from lightx2v.stages.build import load_stage, open_device
from lightx2v.stages.denoise import Report, StepStage, ignore
from lightx2v.stages.flow import Step, brought, steps
from lightx2v.stages.stage import Grant, Stage

CONTEXT = 900 << 20
"""Device bytes that a CUDA process takes beside torch's allocations, with room to grow."""


class Pipeline:
    """One request at a time, its stages in turn; they share the device as the settings say."""

    def __init__(self, settings: EngineSettings) -> None:
        cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
        self._settings = settings
        self._device = open_device("cuda" if cuda else "cpu", settings, f"process-{os.getpid()}")
        names = read_stages(settings)
        self._stages: dict[StageName, Stage[Any]] = {name: load_stage(name, settings, self._device) for name in names}
        self._steps = steps(names)
        self._shares = lru_cache(maxsize=8)(plans.shares)
        self._budget = (settings.gpu_budget or self._device.total()) - (CONTEXT if cuda else 0)

    def generate(
        self, request: GenerateRequest, references: Sequence[Reference] = (), report: Report = ignore
    ) -> Picture | Video:
        """The picture or video of `request`. Raises OutOfMemory if the settings leave it too little."""
        return self.decode(request, self.latents(request, references, report))

    def latents(
        self, request: GenerateRequest, references: Sequence[Reference] = (), report: Report = ignore
    ) -> Latents:
        """Everything up to the final latents."""
        values, (*before, _) = brought(references), self._steps
        for step in before:
            values[step.output] = self._follow(step, request, [values[name] for name in step.inputs], report)
        latents: Latents = values[before[-1].output]
        return latents

    def decode(self, request: GenerateRequest, latents: Latents) -> Picture | Video:
        """The picture or video of final latents."""
        made: Picture | Video = self._follow(self._steps[-1], request, [latents], ignore)
        return made

    def close(self) -> None:
        """Gives all memory back."""
        for stage in self._stages.values():
            stage.close()

    def _follow(self, step: Step, request: GenerateRequest, inputs: list[Any], report: Report) -> Any:
        stage = self._stages[step.stage]
        if step.only_if is not None and not step.only_if(inputs[-1]):
            return inputs[-1]
        if step.method == "run" and (known := stage.recall(request)) is not None:
            return known
        reports = (report,) if isinstance(stage, StepStage) else ()
        return self._run(step.stage, step.method, request, *inputs, _never, *reports)

    def _run(self, name: StageName, job: str, request: GenerateRequest, *inputs: Any) -> Any:
        shares = self._shares(self._settings.policy, self.sizes(request), self._budget)
        for other in self._stages.values():
            if other.name != name:
                other.drop(shares[other.name].resident)
        stage, share = self._stages[name], shares[name]
        workspace = plans.running(stage.size(request), share) - share.placed
        grant = Grant(share.placed, workspace, share.resident)
        return stage.perform(grant, getattr(stage, job), request, *inputs, blocks=stage.blocks(job))

    def sizes(self, request: GenerateRequest) -> tuple[StageSize, ...]:
        """What each stage takes on the device for a request like this one."""
        return tuple(stage.size(request) for stage in self._stages.values())


def _never() -> bool:
    return False
