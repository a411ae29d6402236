"""Bounds that no schedule can beat, from bytes and rates: the least seconds of a request, the most requests per second.

A schedule is assumed to obey these rules:
- The stages of a request compute one after another, and nothing of a request computes before the one ahead of it has
  been answered: one client that sends text after text, each with a prompt that is new.
- The link may carry weights at any moment, also while a stage computes, while an answer is made and sent, and for a
  request that has not come yet. Device memory may be divided anew at any moment, byte by byte. No weight travels back.
- A use of a stage reads all of its weights once, and each takes the same time. At one moment of every use, the same in
  all, its activations are in use; what stays free of the card then is its `weight_room`. Weights are read from the
  device only.
- `stages` of a request are in steady state: what is counted is a period, from one request to the next.

A weight that is not on the device at some moment and is read after it crosses the link in between. So between two
moments between which all of some weights are read, at least these cross but for what there was room for at the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightx2v.residency.plan import StageSize
from lightx2v.types import StageName

Seconds = Mapping[StageName, float]
"""Seconds of computation that a request takes in each stage, all uses together."""


def weight_room(size: StageSize, budget: int) -> int:
    """Bytes for weights of any stage while this one's activations are in use. `budget` leaves the contexts out."""
    return max(0, budget - size.activation_bytes)


def least_moved(stages: Sequence[StageSize], budget: int) -> int:
    """o = max(0, W - R): bytes that cross the link at least, from each request to the next.

    W: bytes of all weights. R: the room of the stage with the largest activations. After that moment all W are read
    until the same moment of the next request.
    """
    return max(0, _weights(stages) - min(weight_room(size, budget) for size in stages))


def least_seconds(stages: Sequence[StageSize], budget: int, link: float, compute: Seconds) -> float:
    """T: seconds from each request to the next, at least. `link`: bytes per second to the device.

    With n uses of a stage of W_s bytes, of c seconds each, tau seconds of computation in all stages, and R its room:

        T >= (n - 1) max(c, max(0, W_s - R) / link) + max(tau - (n - 1) c, max(0, W - R) / link)

    From the moment of one use to that of the next, W_s are read; from the last use's to that of the next request's
    first, all of W. The compute of each stretch takes its time, and so does what crosses the link in it. The largest
    over the stages holds, o / link, and so does the same for stretches of whole uses, which start without any:

        T >= sum over stretches of max(c of its uses, max(0, W of its stages - budget) / link)
    """
    moving = least_moved(stages, budget) / link
    around = (_seconds_around(size, stages, budget, link, compute) for size in stages)
    from_each = (_seconds_from(start, stages, budget, link, compute) for start in range(len(stages)))
    return max(moving, *around, *from_each)


def most_per_second(
    stages: Sequence[StageSize], budget: int, link: float, compute: Seconds, together: int = 1
) -> float:
    """X <= min(1 / tau, k link / o): requests per second, at most, however many wait.

    Stages of different requests take turns at the card's arithmetic. k: `together` requests at most are computed with
    one passage of the weights.
    """
    moved = least_moved(stages, budget)
    arithmetic = 1 / sum(compute.values())
    return min(arithmetic, together * link / moved) if moved else arithmetic


def _seconds_around(size: StageSize, stages: Sequence[StageSize], budget: int, link: float, compute: Seconds) -> float:
    again, use, free = size.planned_passes - 1, compute[size.stage] / size.planned_passes, weight_room(size, budget)
    streaming = again * max(use, max(0, size.reachable - free) / link)
    rest = max(sum(compute.values()) - again * use, max(0, _weights(stages) - free) / link)
    return streaming + rest


def _seconds_from(start: int, stages: Sequence[StageSize], budget: int, link: float, compute: Seconds) -> float:
    """The least seconds of a period that begins with the first use of `start`: of all divisions of its uses into
    stretches, the worst holds."""
    uses = [size for size in (*stages[start:], *stages[:start]) for _ in range(size.planned_passes)]
    most = [0.0]
    for end in range(1, len(uses) + 1):
        most.append(max(most[begin] + _stretch(uses[begin:end], budget, link, compute) for begin in range(end)))
    return most[-1]


def _stretch(uses: Sequence[StageSize], budget: int, link: float, compute: Seconds) -> float:
    read = _weights([*{size.stage: size for size in uses}.values()])
    return max(sum(compute[size.stage] / size.planned_passes for size in uses), max(0, read - budget) / link)


def _weights(stages: Sequence[StageSize]) -> int:
    return sum(size.reachable for size in stages)
