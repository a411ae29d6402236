"""The plan of one card: what stays of every model on it, whatever its policy, and how many requests run together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from lightx2v.errors import OutOfMemory
from lightx2v.residency import plan as plans
from lightx2v.residency.plan import Shares, StageSize
from lightx2v.residency.together import Traffic, plan_together
from lightx2v.residency.width import Cohorts, cohorts
from lightx2v.types import Policy

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Model:
    """What is planned of one model."""

    policy: Policy
    stages: tuple[StageSize, ...]


def plan_card(models: Mapping[K, Model], traffic: Mapping[K, Traffic], budget: int) -> dict[K, Cohorts | OutOfMemory]:
    """The plan of every model, or the reason why it has none, which leaves the others alone.

    `traffic` is that of all models under `auto`, which are planned together. What models under other policies keep is
    not theirs, unless one of them could not run then: it is evicted in its turn. `budget` leaves the contexts out.
    """
    refused = {key: error for key, model in models.items() if (error := _refusal(model, budget))}
    fixed = {
        key: plans.shares(model.policy, model.stages, budget)
        for key, model in models.items()
        if key not in refused and model.policy != "auto"
    }
    auto = {key: model for key, model in models.items() if key not in refused and key not in fixed}
    room = budget - _kept(fixed.values())
    if any(size.least > room for model in auto.values() for size in model.stages):
        room = budget
    planned = fixed | _together(auto, traffic, room)
    kept = _kept(planned.values())
    made: dict[K, Cohorts | OutOfMemory] = {**refused}
    for key, shares in planned.items():
        model, others = models[key], kept - _kept([shares])
        free = _beside(model, shares, others, budget, room if key in auto else budget)
        made[key] = cohorts(model.policy, model.stages, shares, free)
    return made


def _refusal(model: Model, budget: int) -> OutOfMemory | None:
    try:
        if model.policy == "auto":
            plans.check_fit(model.stages, budget)
        else:
            plans.shares(model.policy, model.stages, budget)
    except OutOfMemory as error:
        return error
    return None


def _together(auto: Mapping[K, Model], traffic: Mapping[K, Traffic], room: int) -> dict[K, Shares]:
    if not auto:
        return {}
    sizes, uses = [model.stages for model in auto.values()], [traffic[key] for key in auto]
    return dict(zip(auto, plan_together(sizes, uses, room), strict=True))


def _beside(model: Model, shares: Shares, others: int, budget: int, room: int) -> int:
    """What a model has while it runs: what `others` do not keep, or if that is not enough, all of its `room`, for which
    they give way."""
    own = _kept([shares])
    runs = (plans.grant(size, shares[size.stage]).total + own - shares[size.stage].resident for size in model.stages)
    return budget - others if max(runs) <= budget - others else room


def _kept(planned: Iterable[Shares]) -> int:
    return sum(share.resident for shares in planned for share in shares.values())
