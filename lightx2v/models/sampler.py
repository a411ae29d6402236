"""The step loop that all families share: one request's state, moved by a stepper from noise to final latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Generic, Protocol

import torch
from typing_extensions import TypeVar

from lightx2v.models.flow import euler_step
from lightx2v.models.visits import Pause, Visits
from lightx2v.types import GenerateRequest

C = TypeVar("C", default=Any)
"""A family's conditions: all that its transformer reads besides the latents."""


class Stepper(Protocol):
    """A numerical solver of the flow, for one request."""

    def step(self, latents: torch.Tensor, velocity: torch.Tensor, index: int) -> torch.Tensor:
        """The latents after step `index` of the whole schedule, given the velocity before it."""

    def history(self) -> tuple[torch.Tensor, ...]:
        """What later steps read besides the latents, so that another process can go on; empty if that is nothing."""


class Euler:
    """First order, without memory. `levels`: fp32 [steps + 1], the noise levels from 1 down to 0."""

    def __init__(self, levels: torch.Tensor) -> None:
        self._levels: list[float] = levels.tolist()

    def step(self, latents: torch.Tensor, velocity: torch.Tensor, index: int) -> torch.Tensor:
        return euler_step(latents, velocity, self._levels[index], self._levels[index + 1])

    def history(self) -> tuple[torch.Tensor, ...]:
        return ()


@dataclass(slots=True)
class SamplingState(Generic[C]):
    """One request on its way through the steps. A step changes this state and nothing else, so that several requests
    can take theirs side by side."""

    request: GenerateRequest
    conditions: C
    stepper: Stepper
    latents: torch.Tensor
    """[1, ...], as the stepper moves them."""
    step: int
    """The next one, counted over the whole schedule."""
    stop: int
    """The first one that is not taken here."""

    def advance(self, velocity: torch.Tensor) -> None:
        """Takes the next step. `velocity`: that of `latents`, and of their shape."""
        self.latents = self.stepper.step(self.latents, velocity, self.step)
        self.step += 1

    def park(self) -> BytesIO:
        """All tensors of this state on the host, each with the device that it was on. The state has none then."""
        parked = BytesIO()
        torch.save((self.conditions, self.stepper, self.latents), parked)
        del self.conditions, self.stepper, self.latents
        return parked

    def unpark(self, parked: BytesIO) -> None:
        """Takes back what `park` returned."""
        parked.seek(0)
        self.conditions, self.stepper, self.latents = torch.load(parked, weights_only=False)


def sample(
    state: SamplingState[C], velocity: Callable[[SamplingState[C]], Visits[torch.Tensor]], stepped: Callable[[], None]
) -> Visits[SamplingState[C]]:
    """`state` after all of its steps. Calls `stepped` after each of them. Between two steps the caller may move the
    state to another device, or give up."""
    while state.step < state.stop:
        state.advance((yield from velocity(state)))
        stepped()
        if state.step < state.stop:
            yield Pause.STEP
    return state
