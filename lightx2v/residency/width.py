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

    `wide` is a width from 2 on that comes within 1 % of the least time; 1 if none does. Which of them depends on how a
    stage uses its weights:

    - Once: the largest. The fewest bytes cross for each member, and another one takes few bytes.
    - Once a step, and all of them stay: the smallest. Sharing gains nothing, but a short request can join a long one.
    - Once a step, and they stream: the second smallest, with room beside it for the stages that use their weights once,
      if there is. Some requests are encoded and decoded then while others take steps, so the computation goes on. The
      second smallest leaves the link time for the encoder. H200, klein-9B, eight clients, 8 GiB: 0.95 of the card's
      arithmetic; with the largest width, without the room, 0.89.

    A lone request has no use for what is reserved, and loses nothing: it runs with `narrow`, whose weights are those of
    `shares`.
    """
    free = budget - sum(share.resident for share in shares.values())
    found: Cohorts = {}
    beside = 0
    for size in sorted(stages, key=lambda size: size.planned_passes):
        share = shares[size.stage]
        found[size.stage] = _cohort(policy, size, share, free, beside)
        if size.planned_passes == 1:
            beside += _beside(size, share, found[size.stage].wide.width)
    return found


def time_together(size: StageSize, share: Share) -> float:
    """The time that each request takes in a cohort of the share's width, in bytes that the link carries meanwhile."""
    return exposed(size, share, share.width) / share.width + size.planned_passes * size.overlap_bytes


def _cohort(policy: Policy, size: StageSize, share: Share, free: int, beside: int) -> Cohort:
    roomy = [*_widths(policy, size, share, free - beside)] if _streams_each_step(size, share) else []
    widths = [share, *(roomy or _widths(policy, size, share, free))]
    best = _best(size, share, widths)
    useful = widths[: best.width]
    alone = share.resident, exposed(size, share)
    *_, companions = (wide.width for wide in useful if (wide.resident, exposed(size, wide)) == alone)
    return Cohort(replace(share, width=companions), best)


def _best(size: StageSize, share: Share, widths: Sequence[Share]) -> Share:
    """The `wide` of these widths, the first of which is for one request."""
    least = min(time_together(size, wide) for wide in widths)
    near = [wide for wide in widths[1:] if time_together(size, wide) <= NEAR_BEST * least] or [share]
    if size.planned_passes == 1:
        return near[-1]
    return near[min(1, len(near) - 1)] if _streams_each_step(size, share) else near[0]


def _streams_each_step(size: StageSize, share: Share) -> bool:
    return size.planned_passes > 1 and share.placed < size.reachable


def _beside(size: StageSize, share: Share, width: int) -> int:
    """Bytes that a cohort of a stage takes besides the weights that stay, while another stage runs."""
    least = replace(share, placed=max(size.rest, share.resident), width=width)
    return grant(size, least).total - share.resident


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
