"""Several models on one card in one plan: what stays of each follows from how often and in which order they run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from math import inf
from typing import NamedTuple

from lightx2v.residency.plan import Share, Shares, StageSize, check_fit, exposed, moved, placeable, plan

HIDDEN = 1 / 1024
"""What a byte that moves behind computation counts, where one that is waited for counts 1."""

DIVISIONS, ROUNDS = 12, 3
"""Amounts of kept bytes that are tried, and how often: each time nearer to the best of the last."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """How a model has been used lately."""

    share: float
    """Of all runs on the card."""
    switching: float
    """The part of its runs before which another model has run since its stage did."""


class _Option(NamedTuple):
    """What a stage may keep, and what it costs."""

    kept: int
    cost: float


def plan_together(models: Sequence[Sequence[StageSize]], traffic: Sequence[Traffic], budget: int) -> list[Shares]:
    """The shares of every model's stages within `budget`, which leaves the contexts out.

    One model alone gets `plan`, which is exact. Several get the better of two plans by the bytes that a run waits for,
    on average over the traffic (and by the bytes that it moves, which count a thousandth):

    - Side by side: what a stage keeps stays whoever runs, and a stage that runs places what fits beside all that is
      kept. Nothing is evicted. This suits models that take turns.
    - By turns: each model is planned as if it were alone, and the next model evicts what it keeps. After a switch all
      of its weights come anew. This suits models that run many times in a row.

    Each is found by a search that is near the best (`_divide`). Raises OutOfMemory if a stage does not fit alone.
    """
    if len(models) == 1:
        return [_exact(tuple(models[0]), budget)]
    check_fit([size for stages in models for size in stages], budget)
    beside = divide(models, [one.share for one in traffic], budget)
    alone = [_alone(tuple(stages), budget) for stages in models]
    taking_turns = sum(map(_cost_by_turns, models, alone, traffic))
    return beside if cost(models, beside, [one.share for one in traffic]) <= taking_turns else alone


def cost(models: Sequence[Sequence[StageSize]], planned: Sequence[Shares], weights: Sequence[float]) -> float:
    """Bytes that a run of all stages waits for and, far less, moves: on average by the models' `weights`."""
    triples = zip(models, planned, weights, strict=True)
    return sum(weight * _cost(size, shares[size.stage]) for stages, shares, weight in triples for size in stages)


def divide(models: Sequence[Sequence[StageSize]], weights: Sequence[float], budget: int) -> list[Shares]:
    """The shares with the least `cost`, nearly, of which all that is kept stays whoever runs.

    If the bytes kept in all were known, what a stage keeps would decide its cost alone: it may place what they leave.
    So for each of some amounts, the kept bytes are divided as in a knapsack: whoever gains most per byte keeps more.
    Then stages give up what others gain more from, one by one.
    """
    stages = [_Stage(size, weight) for sizes, weight in zip(models, weights, strict=True) for size in sizes]
    low, high = 0, budget
    best = [0 for _ in stages]
    for _ in range(ROUNDS):
        step = max(1, (high - low) // DIVISIONS)
        best = min(best, _best(stages, range(low, high + 1, step), budget), key=partial(_total, stages, budget))
        low, high = max(0, sum(best) - step), sum(best) + step
    kept = _polished(stages, budget, best)
    placed = [stage.placed(nbytes, budget - sum(kept)) or 0 for stage, nbytes in zip(stages, kept, strict=True)]
    found = iter(map(Share, (stage.size.stage for stage in stages), kept, placed))
    return [{size.stage: next(found) for size in sizes} for sizes in models]


@lru_cache(maxsize=16)
def _exact(stages: tuple[StageSize, ...], budget: int) -> Shares:
    """The plan, cached: it takes up to a second, and is needed again when a dead process's successor joins."""
    return plan(stages, budget)


@lru_cache(maxsize=64)
def _alone(stages: tuple[StageSize, ...], budget: int) -> Shares:
    """Nearly the plan, but fast however many stages there are; cached, as it does not depend on the traffic."""
    return divide([stages], [1.0], budget)[0]


class _Stage:
    """A stage with what it may keep."""

    def __init__(self, size: StageSize, weight: float) -> None:
        self.size = size
        self.weight = weight
        self.prefixes = size.prefixes()
        self.choices = sorted({0, *self.prefixes})
        self._costs: dict[tuple[int, int], float] = {}

    def placed(self, kept: int, free: int) -> int | None:
        """What is placed if `kept` stays and `free` bytes are left besides; None if it could not run."""
        placed = placeable(self.size, self.prefixes, free + kept - self.size.activation_bytes)
        return placed if 0 <= placed >= kept else None

    def cost(self, kept: int, free: int) -> float:
        """The weighted cost of such a share; infinite if it could not run."""
        placed = self.placed(kept, free)
        if placed is None:
            return inf
        if (found := self._costs.get((kept, placed))) is None:
            found = self._costs[kept, placed] = self.weight * _cost(self.size, Share(self.size.stage, kept, placed))
        return found

    def options(self, free: int, most: int) -> list[_Option]:
        """What it may keep, up to `most`, so that it could run, with the costs."""
        costs = [(kept, self.cost(kept, free)) for kept in self.choices[: bisect_right(self.choices, most)]]
        return [_Option(kept, cost) for kept, cost in costs if cost < inf]


def _cost(size: StageSize, share: Share) -> float:
    return exposed(size, share) + HIDDEN * moved(size, share)


def _cost_by_turns(stages: Sequence[StageSize], shares: Shares, traffic: Traffic) -> float:
    def one(size: StageSize) -> float:
        share = shares[size.stage]
        anew = Share(size.stage, 0, share.placed)
        return traffic.switching * _cost(size, anew) + (1 - traffic.switching) * _cost(size, share)

    return traffic.share * sum(map(one, stages))


def _best(stages: Sequence[_Stage], totals: Iterable[int], budget: int) -> list[int]:
    divisions = (_kept([stage.options(budget - total, total) for stage in stages], total) for total in totals)
    return min((kept for kept in divisions if kept), key=partial(_total, stages, budget), default=[0 for _ in stages])


def _polished(stages: Sequence[_Stage], budget: int, kept: list[int]) -> list[int]:
    """What each stage keeps after changes of one or two stages, as long as one of them is for the better."""
    while True:
        options = [stage.options(budget - sum(kept), budget) for stage in stages]
        found = min(_exchanges(options, kept), key=partial(_total, stages, budget), default=kept)
        if _total(stages, budget, found) >= _total(stages, budget, kept):
            return kept
        kept = found


def _exchanges(options: Sequence[Sequence[_Option]], kept: Sequence[int]) -> Iterator[list[int]]:
    """Yields divisions in which a stage keeps a unit more or less, or as much or little as it can, also if others keep
    what it gives up."""
    chosen = [next(one for one in some if one.kept == nbytes) for some, nbytes in zip(options, kept, strict=True)]
    for index, (choices, has) in enumerate(zip(options, chosen, strict=True)):
        at = choices.index(has)
        for option in {choices[0], *choices[max(0, at - 1) : at + 2], choices[-1]} - {has}:
            yield [*kept[:index], option.kept, *kept[index + 1 :]]
            if option < has:
                others = [*options[:index], [option], *options[index + 1 :]]
                yield _fill(others, [*chosen[:index], option, *chosen[index + 1 :]], has.kept - option.kept)


def _total(stages: Sequence[_Stage], budget: int, kept: Sequence[int]) -> float:
    free = budget - sum(kept)
    return sum(stage.cost(nbytes, free) for stage, nbytes in zip(stages, kept, strict=True))


def _kept(options: Sequence[Sequence[_Option]], total: int) -> list[int] | None:
    """What each stage keeps of `total` bytes, one of its options; None if they do not suffice."""
    if not all(options):
        return None
    hulls = [_hull(choices) for choices in options]
    at = [0] * len(hulls)
    left = total - sum(hull[0].kept for hull in hulls)
    if left < 0:
        return None
    gains = (
        ((after.cost - before.cost) / (after.kept - before.kept), index, step)
        for index, hull in enumerate(hulls)
        for step, (before, after) in enumerate(pairwise(hull))
    )
    for _, index, step in sorted(gains):
        nbytes = hulls[index][step + 1].kept - hulls[index][step].kept
        if at[index] == step and nbytes <= left:
            at[index], left = step + 1, left - nbytes
    return _fill(options, [hull[step] for hull, step in zip(hulls, at, strict=True)], left)


def _fill(options: Sequence[Sequence[_Option]], chosen: list[_Option], left: int) -> list[int]:
    """What each stage keeps if the `left` bytes go to those that gain most."""
    while True:
        better = [
            (option.cost - has.cost, index, option)
            for index, (choices, has) in enumerate(zip(options, chosen, strict=True))
            for option in choices[bisect_right(choices, has) : bisect_right(choices, (has.kept + left, inf))]
            if option.cost < has.cost
        ]
        if not better:
            return [option.kept for option in chosen]
        _, index, option = min(better)
        left -= option.kept - chosen[index].kept
        chosen[index] = option


def _hull(options: Sequence[_Option]) -> list[_Option]:
    """The options that no mixture of two others beats: each further byte gains less than those before it."""
    hull: list[_Option] = []
    for option in options:
        while hull and option.cost <= hull[-1].cost and len(hull) > 1 and _steeper(hull[-2], hull[-1], option):
            hull.pop()
        if not hull or option.cost < hull[-1].cost:
            hull.append(option)
    return hull


def _steeper(first: _Option, middle: _Option, last: _Option) -> bool:
    return (last.cost - first.cost) * (middle.kept - first.kept) < (middle.cost - first.cost) * (last.kept - first.kept)
