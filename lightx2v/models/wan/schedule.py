"""Wan's noise schedule and solver: flow matching along diffusers' UniPC, which remembers its last steps."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler as Solver

from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.configuration import read_configuration
from lightx2v.models.wan.recipe import read_recipe

CONFIG = "scheduler/scheduler_config.json"


class Schedule:
    """What a checkpoint says of its steps."""

    def __init__(self, checkpoint: Path) -> None:
        recipe = read_recipe(checkpoint)
        self._values = read_configuration(checkpoint, CONFIG)
        name, file = self._values.get("_class_name"), checkpoint / CONFIG
        if name != Solver.__name__:
            raise InvalidCheckpoint(f"{file}: {name!r} is not supported; supported is {Solver.__name__}")
        if not self._values.get("use_flow_sigmas") or self._values.get("prediction_type") != "flow_prediction":
            raise InvalidCheckpoint(f"{file}: the schedule of Wan is one of flow matching (use_flow_sigmas)")
        if recipe.flow_shift is not None:
            self._values["flow_shift"] = recipe.flow_shift
        self._boundary = recipe.boundary

    def high(self, steps: int) -> int:
        """How many of so many steps, the first ones, lie at or above the boundary."""
        solver = self.solver(steps)
        return int((solver.timesteps >= self._boundary * solver.config.num_train_timesteps).sum())

    def solver(self, steps: int, history: tuple[torch.Tensor, ...] = ()) -> Solver:
        """A new one for every request, or one that goes on where another was when it was asked to `remember`."""
        solver = Solver.from_config(self._values)
        solver.set_timesteps(steps)
        solver.set_begin_index(0)
        if history:
            counts, solver.last_sample, *outputs = history
            begin, solver.lower_order_nums, solver.this_order = counts.tolist()
            solver.set_begin_index(begin)
            solver.model_outputs[-len(outputs) :] = outputs
        return solver


def remember(solver: Solver) -> tuple[torch.Tensor, ...]:
    """All that the steps to come depend on, beside the latents; nothing if there are none."""
    if solver.step_index == len(solver.timesteps):
        return ()
    counts = torch.tensor([solver.step_index, solver.lower_order_nums, solver.this_order])
    return (counts, solver.last_sample, *(output for output in solver.model_outputs if output is not None))
