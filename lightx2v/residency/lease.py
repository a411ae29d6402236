"""The messages between the ledger and the holders of memory. All sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightx2v.errors import DeadlineExceeded, OutOfMemory
from lightx2v.types import STAGES, StageName


@dataclass(frozen=True, slots=True)
class Holder:
    """One process that holds weights of one stage."""

    id: str
    model: str
    stage: StageName
    pid: int
    context: int
    """Bytes that the process itself takes on the card, as far as is known; they return only with the process."""
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
class Grant:
    """Device memory for one run."""

    weights: int
    """May be resident while the run lasts; the others stream."""
    activation_bytes: int
    slot_bytes: int
    """For what streams; 0 where nothing does."""
    keep: int
    """Weights that may stay after the run."""
    width: int = field(default=1, kw_only=True)
    """Requests of the planned size that may run together."""

    @property
    def extra_bytes(self) -> int:
        """Bytes that the run takes besides its weights."""
        return self.activation_bytes + self.slot_bytes

    @property
    def total(self) -> int:
        """All that the run takes."""
        return self.weights + self.extra_bytes


@dataclass(frozen=True, slots=True)
class Room:
    """The bytes of one job besides weights."""

    activation_bytes: int
    """While it computes."""
    member_bytes: int
    """Those of them that it keeps while another member of its cohort computes."""


@dataclass(frozen=True, slots=True)
class Work:
    """What waits or runs at a holder."""

    jobs: int
    seconds: float
    """Predicted seconds of computation of all of them together; 0 if nothing was measured yet."""
    admitted_at: float
    """Unix seconds at which the oldest was admitted."""
    priority: int = 0
    """The highest of them; the higher, the sooner."""


@dataclass(frozen=True, slots=True)
class Need:
    """The memory that one run asks for."""

    weights: int
    """Bytes of weights to hold while running."""
    floor: int
    """The least it can run with; the remainder streams."""
    activation_bytes: int
    slot_bytes: int
    """Comes on top when not all reachable weights are granted."""
    keep: int
    """Bytes of weights to hold at rest after the run."""
    width: int = 1
    """Requests that may run together; `activation_bytes` suffice for all of them."""

    is_single_use: bool = False
    """Whether each weight is used once. Then more weights than it has would not save the run a byte."""

    def grant(self, weights: int, reachable: int) -> Grant:
        """The grant of a run with `weights`. The slot comes with it unless they are all that are `reachable`."""
        slot_bytes = self.slot_bytes if weights < reachable else 0
        return Grant(weights, self.activation_bytes, slot_bytes, min(self.keep, weights), width=self.width)

    def least(self, reachable: int) -> int:
        """The smallest room in which the run is possible."""
        return self.grant(self.floor, reachable).total

    def fit(self, room: int, reachable: int) -> int | None:
        """The weights to grant out of `room`: all that are wanted or else what fits, None if below the floor."""
        if self.grant(self.weights, reachable).total <= room:
            return self.weights
        weights = room - self.activation_bytes - self.slot_bytes
        return weights if weights >= self.floor else None


@dataclass(frozen=True, slots=True)
class Wish:
    """The weights that a holder should have before its next run. `keep` of them are to stay while others run. Its own
    run takes `extra_bytes` on top."""

    weights: int
    extra_bytes: int
    keep: int


@dataclass(frozen=True, slots=True)
class Lease(Grant):
    """The right to run within a grant, until the release."""

    id: str
    holder: str

    @property
    def returns(self) -> int:
        """Bytes that its release gives back."""
        return self.extra_bytes + max(0, self.weights - self.keep)


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


@dataclass(frozen=True, slots=True)
class Recall:
    """The running holder is to end its lease at its next step boundary. The release answers it. What is left of its
    work waits with its next request."""

    holder: str
    lease: str


Command = Shrink | Fetch | Recall
"""A command to a holder: an idle one drops or fetches weights, a running one ends its lease. To carry it out twice has
the same effect as once."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The ticket is void."""

    ticket: str
    error: OutOfMemory | DeadlineExceeded


Event = Granted | Command | Refused
