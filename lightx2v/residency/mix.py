"""Which models run on a card, and how they alternate: the traffic of the last minute, by which they are planned."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

from lightx2v.residency.together import Traffic
from lightx2v.types import StageName

K = TypeVar("K", bound=Hashable)

WINDOW_SECONDS = 60.0
LEAST_SHARE = 0.01
"""What a model counts that did not run: it may come back at any moment."""

CHANGE = 0.25
"""The change of the traffic after which a plan is stale. Less is noise, and every new plan moves weights."""

PLAN_SECONDS = 10.0
"""A plan is not stale before this time."""


class _Run(NamedTuple):
    at: float
    model: Hashable
    stage: StageName
    switched: bool


class Mix(Generic[K]):
    """The runs of the last minute by model, of which a cohort's run is one: its weights cross once for all members.

    Times are monotonic seconds and come from the caller.
    """

    def __init__(self) -> None:
        self._runs: deque[_Run] = deque()
        self._now = 0.0
        self._model: K | None = None
        self._switches = 0
        self._seen: dict[tuple[K, StageName], int] = {}
        self._planned: Mapping[K, Traffic] = {}
        self._planned_at = 0.0

    def note(self, model: K, stage: StageName, now: float) -> None:
        """Counts a run that begins."""
        self._advance(now)
        self._switches += model != self._model
        switched = self._seen.get((model, stage)) != self._switches
        self._model, self._seen[model, stage] = model, self._switches
        self._runs.append(_Run(now, model, stage, switched))

    def plan(self, models: Collection[K]) -> Mapping[K, Traffic]:
        """The traffic of these models, which counts as planned from now on. Others are forgotten."""
        self._seen = {key: switches for key, switches in self._seen.items() if key[0] in models}
        self._planned, self._planned_at = self._traffic(models), self._now
        return self._planned

    def is_stale(self, now: float) -> bool:
        """Whether the traffic is another one than it was at the last plan, and that was some time ago."""
        self._advance(now)
        if now - self._planned_at < PLAN_SECONDS or len(self._planned) < 2:
            return False
        ran = any(run.model in self._planned for run in self._runs)
        return ran and _change(self._planned, self._traffic(self._planned)) > CHANGE

    def _traffic(self, models: Collection[K]) -> dict[K, Traffic]:
        """Without runs, the models are taken to be used alike and at random."""
        runs = [run for run in self._runs if run.model in models]
        stages = Counter((run.model, run.stage) for run in runs)
        times = {model: max((n for (one, _), n in stages.items() if one == model), default=0) for model in models}
        total = sum(times.values())
        shares = {model: max(LEAST_SHARE, n / total) if total else 1 / len(models) for model, n in times.items()}
        switched = Counter(run.model for run in runs if run.switched)
        counted = Counter(run.model for run in runs)
        return {
            model: Traffic(share, switched[model] / counted[model] if counted[model] else 1 - share)
            for model, share in shares.items()
        }

    def _advance(self, now: float) -> None:
        self._now = max(self._now, now)
        while self._runs and self._runs[0].at <= self._now - WINDOW_SECONDS:
            self._runs.popleft()


def _change(before: Mapping[K, Traffic], after: Mapping[K, Traffic]) -> float:
    """The larger of two distances: the total variation of the shares, and the mean change of the switching."""
    shares = sum(abs(after[model].share - before[model].share) for model in before) / 2
    switching = sum(after[model].share * abs(after[model].switching - before[model].switching) for model in before)
    return max(shares, switching)
