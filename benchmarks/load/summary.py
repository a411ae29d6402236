"""The figures of a load: pictures a second, quantiles of the latency, refusals, and the client's own delay."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.load.answer import Answer, pictures

QUANTILES = (50, 95, 99)
LATE_SECONDS = 0.05
"""A client that sends so late has not made the load that was asked for."""


def steady_rate(ends: Sequence[float], clients: int) -> float:
    """Pictures per second of a closed loop while all clients wait for something: from the answer by which each may have
    had one, to the last before some client has nothing left to send. Raises ValueError for too few answers."""
    ordered = sorted(ends)
    counted = len(ordered) - 2 * clients
    if counted <= 0:
        raise ValueError(f"{len(ordered)} pictures are too few for a rate with {clients} clients")
    return counted / (ordered[len(ordered) - clients - 1] - ordered[clients - 1])


def rate_within(answers: Sequence[Answer], seconds: float, deadline: float | None = None) -> float:
    """Pictures per second in time, over so many seconds from the first moment at which a request was due."""
    start = min(answer.due for answer in answers)
    return sum(answer.ended <= start + seconds for answer in in_time(answers, deadline)) / seconds


def in_time(answers: Sequence[Answer], deadline: float | None) -> list[Answer]:
    """The answers with a picture that came within the deadline, in seconds from when the request was sent."""
    return [answer for answer in pictures(answers) if deadline is None or answer.seconds_since_sent <= deadline]


def summarise(answers: Sequence[Answer], per_second: float, deadline: float | None = None) -> dict[str, Any]:
    """Of a load's answers. `per_second`: pictures in time."""
    made = pictures(answers)
    starts = [answer.sent - answer.due for answer in answers]
    by_ask = {label: quantiles([one.seconds for one in some]) for label, some in _grouped(made).items()}
    return {
        "requests": len(answers),
        "pictures": len(made),
        "per_second": per_second,
        "after_deadline": len(made) - len(in_time(answers, deadline)),
        "seconds": quantiles([answer.seconds for answer in made]),
        "seconds_by_ask": by_ask if len(by_ask) > 1 else {},
        "failures": failures(answers),
        "late_start_seconds": quantiles(starts) | {"most": max(starts, default=0.0)},
    }


def failures(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """By status and code, the requests without a picture: their number, and quantiles of the seconds from sending."""
    found: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        if not answer.is_picture:
            found[f"{answer.status} {answer.code}"].append(answer.seconds_since_sent)
    return {name: {"count": len(seconds)} | quantiles(seconds) for name, seconds in sorted(found.items())}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99; nothing of no values."""
    if not values:
        return {}
    return dict(zip((f"p{share}" for share in QUANTILES), np.percentile(values, QUANTILES).tolist(), strict=True))


def warnings(figures: Mapping[str, Any]) -> list[str]:
    """What is wrong with the load itself."""
    late = figures.get("late_start_seconds", {})
    if late.get("p99", 0.0) <= LATE_SECONDS:
        return []
    return [f"the client was late: the p99 of its delay is {late['p99']:.2f} s, so the load was less than asked for"]


def show(name: str, figures: Mapping[str, Any]) -> None:
    """Prints the figures of a part when it is done, on one line, and what was wrong with it."""
    print(f"{name}: {json.dumps(figures)}", *warnings(figures), sep="\n", flush=True)


def ratio(value: float, of: float) -> float | None:
    """None of nothing."""
    return value / of if of else None


def _grouped(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.call.ask.label].append(answer)
    return groups
