"""Wan's noise schedule and solver: flow matching along diffusers' UniPC, which remembers its last steps."""

from __future__ import annotations

from pathlib import Path

from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.configuration import read_configuration

CONFIG = "scheduler/scheduler_config.json"


class Schedule:
    """What a checkpoint says of its steps."""

    def __init__(self, checkpoint: Path) -> None:
        self._values = read_configuration(checkpoint, CONFIG)
        name, file = self._values.get("_class_name"), checkpoint / CONFIG
        if name != UniPCMultistepScheduler.__name__:
            raise InvalidCheckpoint(f"{file}: {name!r} is not supported; supported is UniPCMultistepScheduler")
        if not self._values.get("use_flow_sigmas") or self._values.get("prediction_type") != "flow_prediction":
            raise InvalidCheckpoint(f"{file}: the schedule of Wan is one of flow matching (use_flow_sigmas)")

    def solver(self, steps: int) -> UniPCMultistepScheduler:
        """A new one for every request, since it holds the request's history."""
        solver = UniPCMultistepScheduler.from_config(self._values)
        solver.set_timesteps(steps)
        solver.set_begin_index(0)
        return solver
