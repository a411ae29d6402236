"""The least time that each step of a model has taken, so that nothing is begun that cannot end in time."""

from __future__ import annotations

from collections.abc import Sequence

from lightx2v.models.spec import ModelSpec
from lightx2v.models.work import stage_work
from lightx2v.stages.order import Step
from lightx2v.types import GenerateRequest

DOUBT = 0.9
"""What is left of a least time when a request was refused for it. A time that is too long would otherwise refuse
everything for good."""


class LeastTimes:
    """Seconds per unit of work of each step of a model. A call waits too, so the least is the nearest to its work."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._seconds: dict[str, float] = {}

    def note(self, step: Step, request: GenerateRequest, seconds: float) -> None:
        """A call of this step took so long, with its wait."""
        speed = seconds / stage_work(step.stage, request, self._spec)
        self._seconds[step.output] = min(speed, self._seconds.get(step.output, speed))

    def doubt(self, steps: Sequence[Step]) -> None:
        """A request was refused because of the time of these steps."""
        for step in steps:
            if step.output in self._seconds:
                self._seconds[step.output] *= DOUBT

    def of(self, steps: Sequence[Step], request: GenerateRequest) -> float:
        """The least seconds that these steps take one after another; 0 for those that were never measured."""
        known = (step for step in steps if step.output in self._seconds)
        return sum(self._seconds[step.output] * stage_work(step.stage, request, self._spec) for step in known)
