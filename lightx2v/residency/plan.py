"""Who stays on the card between runs, who comes and goes, and what streams through a slot while its stage runs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product

from lightx2v.errors import OutOfMemory
from lightx2v.residency.lease import Grant
from lightx2v.types import Policy, StageName


@dataclass(frozen=True)
class StageSize:
    """The bytes that one stage takes on the card."""

    stage: StageName
    units: tuple[int, ...]
    """Each streamable unit, in order of use."""
    rest: int
    """Needed throughout a run."""
    activation_bytes: int
    slot_bytes: int
    """The ring through which units stream; needed only if something streams."""
    planned_passes: int
    """How often a request uses each unit: once, or once a step."""
    overlap_bytes: int = 0
    """Bytes that the link carries while one use of all units computes. 0 if the rates are not known."""
    member_bytes: int = 0
    """What each further member of a cohort takes beside the activations of the one that computes."""
    max_width: int = 8
    """The most requests that may run together. Their steps take turns, so each further one makes all wait longer."""

    @cached_property
    def reachable(self) -> int:
        """Bytes of all weights that a run can read."""
        return self.rest + sum(self.units)

    @property
    def least(self) -> int:
        """The smallest room in which a run is possible."""
        return min(self.reachable, self.rest + self.slot_bytes) + self.activation_bytes

    def prefixes(self) -> list[int]:
        """The rest alone, with the first unit, with the first two, and so on."""
        return list(accumulate(self.units, initial=self.rest))


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes of weights kept at rest, and held while running. What lies beyond `placed` streams unit by unit."""

    stage: StageName
    resident: int
    placed: int
    width: int = 1
    """Requests of the planned size that may run together."""


Shares = dict[StageName, Share]


def shares(policy: Policy, stages: Sequence[StageSize], budget: int) -> Shares:
    """The shares that a policy gives within `budget`, which leaves the contexts out. One request runs at a time.

    Raises OutOfMemory if a stage could not run even with the card to itself.
    """
    if policy == "auto":
        return plan(stages, budget)
    given = {"whole": whole, "model": model, "streamed": streamed}[policy](stages)
    for size in stages:
        needed = grant(size, given[size.stage]).total
        if needed > budget:
            raise OutOfMemory(f"{size.stage} needs {needed} bytes to run as it is set to; the budget is {budget}")
    return given


def plan(stages: Sequence[StageSize], budget: int) -> Shares:
    """The shares that make a request wait for the fewest bytes within `budget`, which leaves the contexts out.

    Exact. Among equals, those that move the fewest; then the stage that uses its weights more often keeps more.
    """
    check_fit(stages, budget)
    order = sorted(range(len(stages)), key=lambda index: -stages[index].planned_passes)

    def rank(shares: list[Share]) -> tuple[int, ...]:
        waits, moves = sum(map(exposed, stages, shares)), sum(map(moved, stages, shares))
        return (waits, moves, *(-shares[index].resident for index in order))

    return {share.stage: share for share in min(_feasible(stages, budget), key=rank)}


def check_fit(stages: Sequence[StageSize], budget: int) -> None:
    """Raises OutOfMemory if a stage cannot run even with all of the budget and every unit streamed."""
    for size in stages:
        if size.least > budget:
            raise OutOfMemory(f"{size.stage} needs {size.least} bytes with every unit streamed; the budget is {budget}")


def moved(size: StageSize, share: Share) -> int:
    """Bytes that one request moves to the card for this stage."""
    return share.placed - share.resident + size.planned_passes * (size.reachable - share.placed)


def exposed(size: StageSize, share: Share, members: int = 1) -> int:
    """Bytes that cross for this stage and that no computation hides, while `members` requests run together.

    What is not resident arrives during the first use of the units, what is not placed again during each other use. A
    use ends when both its copies and the computation of all members have ended.
    """
    first, other = size.reachable - share.resident, size.reachable - share.placed
    hidden = members * size.overlap_bytes
    return max(0, first - hidden) + (size.planned_passes - 1) * max(0, other - hidden)


def grant(size: StageSize, share: Share) -> Grant:
    """The memory that the stage takes while it runs."""
    slot_bytes = size.slot_bytes if share.placed < size.reachable else 0
    activation_bytes = size.activation_bytes + (share.width - 1) * size.member_bytes
    return Grant(share.placed, activation_bytes, slot_bytes, share.resident, width=share.width)


def whole(stages: Sequence[StageSize]) -> Shares:
    """Everything stays: no offload."""
    return {size.stage: Share(size.stage, size.reachable, size.reachable) for size in stages}


def model(stages: Sequence[StageSize]) -> Shares:
    """A stage comes whole and leaves whole, once per request."""
    return {size.stage: Share(size.stage, 0, size.reachable) for size in stages}


def streamed(stages: Sequence[StageSize]) -> Shares:
    """Nothing stays, and every unit streams at every use."""
    return {size.stage: Share(size.stage, 0, size.rest) for size in stages}


def max_replicas(size: StageSize, share: Share, free: int, context: int) -> int:
    """How many replicas of a stage can run at once in `free` bytes, each with its context; at least 1."""
    return max(1, free // (context + grant(size, share).total))


def placeable(size: StageSize, prefixes: Sequence[int], free: int) -> int:
    """The most weights that fit into `free` with the slot that streams the others, or -1 if not even the rest does.

    `prefixes`: those of `size`, which the caller computes once. No placed byte costs more than a streamed one, so the
    most is the best.
    """
    if prefixes[-1] <= free:
        return prefixes[-1]
    fitting = bisect_right(prefixes, free - size.slot_bytes)
    return prefixes[fitting - 1] if fitting else -1


def _feasible(stages: Sequence[StageSize], budget: int) -> Iterator[list[Share]]:
    """Yields, for every choice of what stays, the shares that place as much as the remaining room allows."""
    prefixes = [size.prefixes() for size in stages]
    activation_bytes = max(size.activation_bytes for size in stages)
    for kept in product(*(sorted({0, *choices}) for choices in prefixes)):
        free = budget - sum(kept)
        if free < activation_bytes:
            continue
        shares = [
            Share(size.stage, resident, placeable(size, choices, free + resident - size.activation_bytes))
            for size, choices, resident in zip(stages, prefixes, kept, strict=True)
        ]
        if all(share.resident <= share.placed for share in shares):
            yield shares
