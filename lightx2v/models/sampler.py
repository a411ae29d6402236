"""The step loop that all families share: one request's state, moved by a stepper from noise to final latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import torch
from typing_extensions import TypeVar

from lightx2v.core import GenerateRequest
from lightx2v.models.flow import euler_step

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


def sample(state: SamplingState[C], velocity: Callable[[SamplingState[C]], torch.Tensor]) -> Iterator[SamplingState[C]]:
    """Yields `state` after each of its steps; between two of them the caller may look at it, or give up."""
    while state.step < state.stop:
        state.advance(velocity(state))
        yield state
