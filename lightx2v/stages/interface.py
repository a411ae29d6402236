"""The interface to run a stage, for the server and the pipeline alike. Free of torch at import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from lightx2v.errors import Cancelled
from lightx2v.types import Conditioning, GenerateRequest, Latents, Mask, Picture, Progress

T = TypeVar("T")

StageMethod = Literal["run", "encode"]
"""The methods of a stage. All stages have `run`; the autoencoder's also has `encode`."""


Cancel = Callable[[], bool]
Report = Callable[[Progress], None]


def never() -> bool:
    """The `cancelled` of a caller that waits to the end."""
    return False


def ignore(_: Progress) -> None:
    """The `report` that drops all progress."""


@dataclass(frozen=True, slots=True)
class Control:
    """Connects a run to its caller.

    The run asks `cancelled` between two pieces of work, and calls `report` after every step.
    """

    cancelled: Cancel = never
    report: Report = ignore

    def check(self) -> None:
        """Raises Cancelled if the caller went away."""
        if self.cancelled():
            raise Cancelled("the caller went away")


@dataclass(frozen=True, slots=True)
class StageInputs:
    """The inputs of a run besides its request. Each stage reads the ones that it needs."""

    pictures: tuple[Picture, ...] = ()
    """The reference pictures, prepared for this stage."""
    mask: Mask | None = None
    """The part of the first picture to make anew; None if there is no mask."""
    conditioning: Conditioning | None = None
    references: tuple[Latents, ...] = ()
    """The latents of the reference pictures."""
    latents: Latents | None = None
    """The latents that the stage before this one made."""


StageRun = Callable[[GenerateRequest, StageInputs, Control], Any]
"""A method of a stage. It returns the Visits of one job."""


def need(given: T | None) -> T:
    """An input that the stage needs. Raises ValueError if it is None."""
    if given is None:
        raise ValueError("the stage was called without an input that it needs")
    return given
