"""Wan's noise schedule and solver: flow matching with diffusers' UniPC, a multistep method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler as Solver

from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.configuration import read_configuration
from lightx2v.models.wan.spec import WanSpec

CONFIG = "scheduler/scheduler_config.json"


class Schedule:
    """The schedule of a checkpoint."""

    def __init__(self, checkpoint: Path, spec: WanSpec) -> None:
        self._values = read_configuration(checkpoint, CONFIG)
        name, file = self._values.get("_class_name"), checkpoint / CONFIG
        if name != Solver.__name__:
            raise InvalidCheckpoint(f"{file}: {name!r} is not supported; supported is {Solver.__name__}")
        if not self._values.get("use_flow_sigmas") or self._values.get("prediction_type") != "flow_prediction":
            raise InvalidCheckpoint(f"{file}: the schedule of Wan is one of flow matching (use_flow_sigmas)")
        if spec.flow_shift is not None:
            self._values["flow_shift"] = spec.flow_shift
        self._boundary = spec.boundary

    def high(self, steps: int, shift: float | None = None) -> int:
        """How many of `steps`, the first ones, lie at or above the boundary. `shift`: instead of the checkpoint's."""
        return self.stepper(steps, shift).steps_above(self._boundary)

    def stepper(self, steps: int, shift: float | None = None, history: tuple[torch.Tensor, ...] = ()) -> UniPC:
        """A stepper for one request. `shift`: instead of the checkpoint's. With `history`, it goes on where another
        stepper stopped."""
        values = self._values if shift is None else self._values | {"flow_shift": shift}
        return UniPC(values, steps, history)


class UniPC:
    """diffusers' multistep solver as a stepper. It remembers its last steps, so steps must be taken in turn."""

    def __init__(self, values: Mapping[str, Any], steps: int, history: tuple[torch.Tensor, ...] = ()) -> None:
        self._solver = Solver.from_config(values)
        self._solver.set_timesteps(steps)
        self._solver.set_begin_index(0)
        if history:
            self._recall(*history)

    @property
    def timesteps(self) -> torch.Tensor:
        """[steps], on the host, from 1000 down."""
        timesteps: torch.Tensor = self._solver.timesteps
        return timesteps

    def steps_above(self, share: float) -> int:
        """How many steps lie at or above this share of all timesteps."""
        return int((self.timesteps >= share * self._solver.config.num_train_timesteps).sum())

    def step(self, latents: torch.Tensor, velocity: torch.Tensor, index: int) -> torch.Tensor:
        moved: tuple[torch.Tensor] = self._solver.step(velocity, self.timesteps[index], latents, return_dict=False)
        return moved[0]

    def history(self) -> tuple[torch.Tensor, ...]:
        solver = self._solver
        if solver.step_index == len(solver.timesteps):
            return ()
        counts = torch.tensor([solver.step_index, solver.lower_order_nums, solver.this_order])
        return (counts, solver.last_sample, *(output for output in solver.model_outputs if output is not None))

    def _recall(self, counts: torch.Tensor, sample: torch.Tensor, *outputs: torch.Tensor) -> None:
        begin, self._solver.lower_order_nums, self._solver.this_order = counts.tolist()
        self._solver.last_sample = sample
        self._solver.set_begin_index(begin)
        self._solver.model_outputs[-len(outputs) :] = outputs
