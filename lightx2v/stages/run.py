"""What a stage is run with, by the server and by the pipeline alike. Free of torch at import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from lightx2v.core import Conditioning, GenerateRequest, Latents, Picture, Progress
from lightx2v.errors import Cancelled

T = TypeVar("T")

StageMethod = Literal["run", "encode"]
"""What a stage can be asked for. Only the autoencoder encodes; all others run."""


Cancel = Callable[[], bool]
Report = Callable[[Progress], None]


def never() -> bool:
    """The cancellation of who waits to the end."""
    return False


def ignore(_: Progress) -> None:
    """The report to nobody."""


@dataclass(frozen=True, slots=True)
class Control:
    """A run's way back to its caller.

    `cancelled` is asked between two pieces of work; `report` is told of every step that is done.
    """

    cancelled: Cancel = never
    report: Report = ignore

    def check(self) -> None:
        """Raises Cancelled if the caller is gone."""
        if self.cancelled():
            raise Cancelled("the caller went away")


@dataclass(frozen=True, slots=True)
class StageInputs:
    """What a run is given besides its request. Each stage reads what it needs."""

    pictures: tuple[Picture, ...] = ()
    """Reference pictures as this stage takes them."""
    conditioning: Conditioning | None = None
    references: tuple[Latents, ...] = ()
    """What the autoencoder made of the reference pictures."""
    latents: Latents | None = None
    """What the stage before this one made."""


StageRun = Callable[[GenerateRequest, StageInputs, Control], Any]


def need(given: T | None) -> T:
    """An input that the stage cannot run without. Raises ValueError."""
    if given is None:
        raise ValueError("the stage was run without an input that it needs")
    return given
