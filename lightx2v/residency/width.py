"""How many requests a stage runs together: a cohort, whose members share every weight that crosses the link."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lightx2v.residency.plan import Share, Shares, StageSize, exposed, grant, placeable
from lightx2v.types import Policy, StageName

NEAR_BEST = 1.01
"""Two widths whose times differ by less than this are equally good."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """The shares with which a stage runs, by how many requests wait for it."""

    narrow: Share
    """For a lone request, and for as many more as make it wait for no more bytes. If they take room from what is placed
    for it, less is placed."""
    wide: Share
    """For more than these; the same as `narrow` if more gain nothing."""

    def share(self, jobs: int) -> Share:
        """The share of a run that begins while `jobs` requests wait for it."""
        return self.narrow if jobs <= self.narrow.width else self.wide


Cohorts = dict[StageName, Cohort]


def cohorts(policy: Policy, stages: Sequence[StageSize], shares: Shares, budget: int) -> Cohorts:
    """The widths of the stages of one model, each up to its `max_width`, for the `shares` of one request at a time.

    `budget` leaves out the contexts and what other models keep. A cohort of k members takes (k - 1) `member_bytes`
    beside the activations of the one that computes. Under `auto` fewer weights are placed then; under other policies
    the members must fit beside the weights as they are. In the time of the link, with c = `overlap_bytes`, a use takes
    max(k c, bytes that cross in it) for all k together, and each takes

        exposed(k) / k + planned_passes c

    `wide` is a width from 2 on that comes within 1 % of the least time; 1 if none does. Where weights stream, it is the
    largest: the fewest bytes cross for each member, and those who end together leave the card to the next stage
    together, which brings its weights once for all of them (H200, klein-9B, 12 GiB, eight clients: 0.90 of the card's
    arithmetic with 8, 0.86 with 2). Where all weights stay, it is the smallest: sharing gains nothing then, but a short
    request can join a long one. A lone request has no use for what is reserved, and loses nothing: it runs with
    `narrow`, whose weights are those of `shares`.
    """
    kept = sum(share.resident for share in shares.values())
    return {size.stage: _cohort(policy, size, shares[size.stage], budget - kept) for size in stages}


def time_together(size: StageSize, share: Share) -> float:
    """The time that each request takes in a cohort of the share's width, in bytes that the link carries meanwhile."""
    return exposed(size, share, share.width) / share.width + size.planned_passes * size.overlap_bytes


def _cohort(policy: Policy, size: StageSize, share: Share, free: int) -> Cohort:
    widths = [share, *_widths(policy, size, share, free)]
    least = min(time_together(size, wide) for wide in widths)
    near = [wide for wide in widths[1:] if time_together(size, wide) <= NEAR_BEST * least] or [share]
    best = near[-1] if share.placed < size.reachable else near[0]
    useful = widths[: best.width]
    alone = share.resident, exposed(size, share)
    *_, companions = (wide.width for wide in useful if (wide.resident, exposed(size, wide)) == alone)
    return Cohort(replace(share, width=companions), best)


def _widths(policy: Policy, size: StageSize, share: Share, free: int) -> Iterator[Share]:
    """Yields the share of every width from 2 on that fits into `free` and what the stage keeps."""
    prefixes, room = size.prefixes(), free + share.resident
    for width in range(2, size.max_width + 1):
        wide = replace(share, width=width)
        if policy == "auto":
            placed = placeable(size, prefixes, room - grant(size, wide).activation_bytes)
            wide = replace(wide, resident=min(share.resident, placed), placed=min(share.placed, placed))
        if wide.placed < size.rest or grant(size, wide).total > room:
            return
        yield wide
