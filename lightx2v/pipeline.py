"""The stages in one process: the reference, the command line, the golden images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from lightx2v.checkpoint import read_stages
from lightx2v.config import EngineSettings
from lightx2v.core import Conditioning, GenerateRequest, Latents, Picture, Reference, StageName, Video
from lightx2v.residency import plan as plans
from lightx2v.residency.plan import StageSize
from lightx2v.stages.build import load_stage, open_device
from lightx2v.stages.run import Control, Report, StageInputs, StageMethod, ignore
from lightx2v.stages.stage import Stage

CONTEXT = 900 << 20
"""Device bytes that a CUDA process takes beside torch's allocations, with room to grow."""

WAITING = Control()
"""Of a caller that waits to the end."""


class Pipeline:
    """One request at a time, its stages in turn; they share the device as the settings say."""

    def __init__(self, settings: EngineSettings) -> None:
        cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
        self._settings = settings
        self._device = open_device("cuda" if cuda else "cpu", settings, f"process-{os.getpid()}")
        names = read_stages(settings)
        self._stages: dict[StageName, Stage[Any]] = {name: load_stage(name, settings, self._device) for name in names}
        self._shares = lru_cache(maxsize=8)(plans.shares)
        self._budget = (settings.gpu_budget or self._device.total()) - (CONTEXT if cuda else 0)

    def generate(
        self,
        request: GenerateRequest,
        references: Sequence[Reference] = (),
        report: Report = ignore,
    ) -> Picture | Video:
        """The picture or video of `request`. Raises OutOfMemory if the settings leave it too little."""
        return self.decode(request, self.latents(request, references, report))

    def latents(
        self,
        request: GenerateRequest,
        references: Sequence[Reference] = (),
        report: Report = ignore,
    ) -> Latents:
        """Everything up to the final latents."""
        conditioning: Conditioning | None = self._stages["encode"].recall(request)
        if conditioning is None:
            seen = tuple(reference.seen for reference in references if reference.seen is not None)
            conditioning = self._run("encode", "run", request, StageInputs(pictures=seen))
        fitted = tuple(reference.fitted for reference in references)
        encoded = self._run("decode", "encode", request, StageInputs(pictures=fitted)) if fitted else ()
        control, inputs = Control(report=report), StageInputs(conditioning=conditioning, references=encoded)
        latents: Latents = self._run("denoise", "run", request, inputs, control)
        if latents.history:
            latents = self._run("refine", "run", request, replace(inputs, latents=latents), control)
        return latents

    def decode(self, request: GenerateRequest, latents: Latents) -> Picture | Video:
        """The picture or video of final latents."""
        made: Picture | Video = self._run("decode", "run", request, StageInputs(latents=latents))
        return made

    def close(self) -> None:
        """Gives all memory back."""
        for stage in self._stages.values():
            stage.close()

    def _run(
        self,
        name: StageName,
        method: StageMethod,
        request: GenerateRequest,
        inputs: StageInputs,
        control: Control = WAITING,
    ) -> Any:
        shares = self._shares(self._settings.policy, self.sizes(request), self._budget)
        for other in self._stages.values():
            if other.name != name:
                other.drop(shares[other.name].resident)
        stage, share = self._stages[name], shares[name]
        grant = plans.grant(stage.size(request), share)
        return stage.perform(grant, stage.method(method), request, inputs, control)

    def sizes(self, request: GenerateRequest) -> tuple[StageSize, ...]:
        """What each stage takes on the device for a request like this one."""
        return tuple(stage.size(request) for stage in self._stages.values())
