"""What tests of cohorts need: the jobs of a model's stages with their outputs alone, and members that come, fail and
leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from lightx2v.checkpoint import read_stages
from lightx2v.config import EngineSettings, LoraSettings
from lightx2v.models.component import Component
from lightx2v.models.reference_image import make_reference
from lightx2v.models.registry import find_family
from lightx2v.models.spec import ModelSpec
from lightx2v.residency.lease import Grant
from lightx2v.stages.build import load_stage
from lightx2v.stages.interface import Control, StageInputs, StageMethod
from lightx2v.stages.order import Step, brought, steps
from lightx2v.stages.stage import Stage
from lightx2v.types import ChosenLora, GenerateRequest, Progress, Reference, StageName
from lightx2v.weights.device import CpuDevice, Device
from tests.checkpoints import lora
from tests.parity.reference import make_image, make_request
from tests.parity.test_inpainting import make_mask

SIZES = ((64, 96), (96, 64), (64, 64))
LORAS = ("oil", "ink")


class Counting(CpuDevice):
    """Counts apart what crosses the link for one request alone: LoRAs, and layers that stay on the host."""

    brought = 0

    def bring(self, host: torch.Tensor) -> torch.Tensor:
        self.brought += host.nbytes
        return super().bring(host)

    @property
    def shared(self) -> int:
        """Bytes that were moved for all requests together."""
        return self.h2d_bytes - self.brought


class Job(NamedTuple):
    """A call of a stage, and its output if it has the stage to itself."""

    request: GenerateRequest
    inputs: StageInputs
    expected: list[Any]


class Kind(NamedTuple):
    """What the members of a cohort have in common."""

    stage: StageName
    method: StageMethod


class Model:
    """The stages of a checkpoint on a device, and jobs of every kind for each of them."""

    def __init__(
        self, checkpoint: Path, folder: Path, device: Device, dtype: Literal["float32", "bfloat16"] = "float32"
    ) -> None:
        family, spec = find_family(checkpoint), find_family(checkpoint).spec(checkpoint)
        denoiser = family.build("denoise", checkpoint, torch.float32, spec)
        loras = {} if spec.has_refiner else {name: write_lora(folder, denoiser, name) for name in LORAS}
        engine = EngineSettings(model=str(checkpoint), dtype=dtype, conditioning_cache=0, compile=False, loras=loras)
        names = read_stages(engine)
        self.stages: dict[StageName, Stage[Any]] = {name: load_stage(name, engine, device) for name in names}
        self.jobs: dict[Kind, list[Job]] = {}
        for index in range(len(SIZES)):
            self._record(*make_asked(spec, index, tuple(loras)))

    def _record(self, request: GenerateRequest, references: Sequence[Reference]) -> None:
        values = brought(references)
        for step in steps(list(self.stages)):
            inputs = {name: values[output] for name, output in step.inputs.items()}
            *_, last = inputs.values()
            is_skipped = step.only_if is not None and not step.only_if(last)
            values[step.output] = last if is_skipped else self._alone(step, request, StageInputs(**inputs))

    def _alone(self, step: Step, request: GenerateRequest, inputs: StageInputs) -> Any:
        stage = self.stages[step.stage]
        grant = Grant(stage.reachable, 0, 0, stage.reachable)
        made = stage.perform(grant, step.method, request, inputs, Control())
        job = Job(request, inputs, list(leaves(made)))
        self.jobs.setdefault(Kind(step.stage, step.method), []).append(job)
        return made


def make_asked(spec: ModelSpec, index: int, loras: Sequence[str]) -> tuple[GenerateRequest, list[Reference]]:
    """Requests that differ in all that may differ: sizes, steps, guidance, prompts, references, masks and LoRAs."""
    width, height = SIZES[index]
    mask = make_mask(width, height, (0, 0, 16, 32)) if index == 2 and spec.takes_mask else None
    count = max(spec.min_references, mask is not None, min(index, spec.max_references))
    masks = [mask, *[None] * count]
    references = [make_reference(make_image(seed, width, height), spec, masks[seed]) for seed in range(count)]
    request = make_request(
        width,
        height,
        prompt="a red circle " * (1 + 9 * index),
        steps=3 - index,
        seed=index,
        guidance=(1.0, 4.0, 0.0)[index],
        negative_prompt="grey " * index,
        references=tuple(reference.fitted.size for reference in references),
        is_masked=mask is not None,
        frames=(1, 5, 9)[index] if spec.video else 1,
        loras=tuple(ChosenLora(name, 0.5 + index) for name in loras[: 2 - index]),
    )
    return request, references


def write_lora(folder: Path, denoiser: Component, name: str) -> LoraSettings:
    """A LoRA of linear layers in blocks and outside of them, of layers that stay on the host, and of a norm."""
    generator = torch.Generator().manual_seed(ord(name[0]))
    layers = [(path, layer) for path, layer in denoiser.module.named_modules() if isinstance(layer, nn.Linear)]
    norms = [(path, layer) for path, layer in denoiser.module.named_modules() if isinstance(layer, nn.RMSNorm)]
    tensors: lora.Tensors = {}
    for path, layer in [*layers[:3], *layers[-9::2]]:
        stem, into, leaving = stored(denoiser, path), layer.in_features, layer.out_features
        down, up = torch.randn(2, into, generator=generator), torch.randn(leaving, 2, generator=generator)
        tensors |= {f"{stem}.lora_A.weight": down / 8, f"{stem}.lora_B.weight": up / 8}
    for path, norm in norms[:1]:
        tensors[f"{stored(denoiser, path)}.diff"] = torch.randn(norm.weight.shape, generator=generator) / 8
    return LoraSettings(path=str(lora.write(folder / f"{name}.safetensors", tensors)))


def stored(denoiser: Component, path: str) -> str:
    """The name of a layer in files of the transformer."""
    return f"transformer.{denoiser.weights.source(f'{path}.weight').removesuffix('.weight')}"


class Fault(Exception):
    """The error of a member's caller."""


@dataclass(slots=True)
class Fate:
    """What becomes of a member."""

    job: int
    """The number of its job among those of its kind."""
    arrives: int
    """The round before which it comes."""
    fails_at: int | None = None
    """The progress at which its caller raises."""
    leaves_at: int | None = None
    """The check at which its caller is gone."""
    made: list[Any] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    _reports: int = 0
    _checks: int = 0

    @property
    def control(self) -> Control:
        return Control(self._is_gone, self._report)

    @property
    def is_ill(self) -> bool:
        """Whether it has failed or left."""
        return self._reports == self.fails_at or self._checks == self.leaves_at

    def _report(self, _: Progress) -> None:
        self._reports += 1
        if self._reports == self.fails_at:
            raise Fault

    def _is_gone(self) -> bool:
        self._checks += 1
        return self._checks == self.leaves_at


def leaves(made: Any) -> Iterator[Any]:
    """All that an output holds, as values that compare by their bits."""
    if isinstance(made, torch.Tensor):
        yield from (made.shape, made.dtype, made.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(made, np.ndarray):
        yield from (made.shape, made.dtype, made.tobytes())
    elif isinstance(made, tuple):
        yield from (leaf for part in made for leaf in leaves(part))
    elif is_dataclass(made):
        yield from (leaf for part in fields(made) for leaf in leaves(getattr(made, part.name)))
    else:
        yield made
