"""What passes between the ledger and those who ask it for memory. All sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass

from lightx2v.core import STAGES, StageName
from lightx2v.errors import DeadlineExceeded, OutOfMemory


@dataclass(frozen=True, slots=True)
class Holder:
    """One process that holds weights of one stage."""

    id: str
    model: str
    stage: StageName
    pid: int
    context: int
    """What the process itself takes on the card, as far as is known; it returns only with the process."""
    reachable: int
    """All weights that the stage can use."""
    settings: str = ""
    """Fingerprint of the settings that the process was started with."""

    @property
    def plan(self) -> tuple[str, str]:
        """Stages with the same one belong to one model and are planned together. An application of other settings,
        or a replica from before they changed, belongs to another model, whatever its name."""
        return self.model, self.settings

    def __str__(self) -> str:
        return f"{self.model} {self.stage} (pid {self.pid})"

    def after(self, other: Holder) -> int:
        """Stages from that holder's to this one's, in the order in which requests pass them, over and over."""
        return (STAGES.index(self.stage) - STAGES.index(other.stage)) % len(STAGES)


@dataclass(frozen=True, slots=True)
class Need:
    """What one run asks for."""

    weights: int
    """To hold while running."""
    floor: int
    """The least it can run with; the remainder streams."""
    workspace: int
    slot: int
    """Comes on top when not all reachable weights are granted."""
    keep: int
    """To hold at rest after the run."""

    def beside(self, weights: int, reachable: int) -> int:
        """What the run takes besides its weights."""
        return self.workspace + (self.slot if weights < reachable else 0)

    def least(self, reachable: int) -> int:
        """The smallest room in which the run is possible."""
        return self.floor + self.beside(self.floor, reachable)

    def fit(self, room: int, reachable: int) -> int | None:
        """The weights to grant out of `room`: all that are wanted or else what fits, None if below the floor."""
        if self.weights + self.beside(self.weights, reachable) <= room:
            return self.weights
        weights = room - self.workspace - self.slot
        return weights if weights >= self.floor else None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a holder would have before its next run: `weights`, of which it is to `keep` so many while others run. Its
    own run will take `beside` on top."""

    weights: int
    beside: int
    keep: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run: at most `weights` on the card, and `workspace` (with the slot) until the release."""

    id: str
    holder: str
    weights: int
    workspace: int
    keep: int

    @property
    def returns(self) -> int:
        """What its release will give back."""
        return self.workspace + max(0, self.weights - self.keep)


@dataclass(frozen=True, slots=True)
class Granted:
    """The ticket became a lease, which has its id."""

    ticket: str
    lease: Lease


@dataclass(frozen=True, slots=True)
class Shrink:
    """The idle holder is to come down to `weights` or less, and to report what it holds then."""

    holder: str
    weights: int
    id: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """The idle holder may come up to `weights`, and is to report what it holds then."""

    holder: str
    weights: int
    id: str


Command = Shrink | Fetch
"""What an idle holder can be told. Carrying it out twice is carrying it out once."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The ticket is void."""

    ticket: str
    error: OutOfMemory | DeadlineExceeded


Event = Granted | Command | Refused
