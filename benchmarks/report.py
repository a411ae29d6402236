"""Turns measurements into the reported figures: percentiles, bounds, and a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.ask import TEXT
from benchmarks.series import Series
from lightx2v.residency.bounds import least_seconds, most_per_second
from lightx2v.residency.plan import StageSize

GIB, GB = 2**30, 1e9
HEAD = (
    *("cap", "request", "first, s", "p50, s", "p95, s", "bound, s", "p50 / bound", "GB per request", "peak, GiB"),
    "pictures/s at once, of 1/compute",
)
SPLITS_HEAD = ("resident blocks", "streamed per step", "seconds", "max(compute, transfer)", "ratio")


def summarise(series: Series, compute: Mapping[str, Any], room: int) -> dict[str, Any]:
    """Of requests of one kind; `room`: the cap less the contexts. `compute`: what `benchmarks.compute` printed."""
    kind = compute["kinds"][series.kind]
    p50, p95 = np.percentile(series.seconds, (50, 95)).tolist()
    bound = least_seconds(sizes(kind), room, compute["link_bytes_per_second"], kind["seconds"])
    return {
        "kind": series.kind,
        "first_seconds": series.first_seconds,
        "first_sha256": series.first_sha256,
        "seconds": series.seconds,
        "p50_seconds": p50,
        "p95_seconds": p95,
        "bound_seconds": bound,
        "p50_over_bound": p50 / bound,
        "h2d_bytes": series.h2d_bytes,
        "d2h_bytes": series.d2h_bytes,
    }


def summarise_rate(per_second: float, clients: int, compute: Mapping[str, Any], room: int) -> dict[str, Any]:
    """Of texts from so many clients at once."""
    kind = compute["kinds"][TEXT]
    bound = most_per_second(sizes(kind), room, compute["link_bytes_per_second"], kind["seconds"], clients)
    return {
        "clients": clients,
        "per_second": per_second,
        "of_compute": per_second * sum(kind["seconds"].values()),
        "bound_per_second": bound,
    }


def sizes(kind: Mapping[str, Any]) -> tuple[StageSize, ...]:
    return tuple(StageSize(**size | {"units": tuple(size["units"])}) for size in kind["sizes"])


def table(run: Mapping[str, Any]) -> str:
    """A row for each cap and kind of request, and one for each baseline."""
    rows = [HEAD, ("---",) * len(HEAD)]
    for cap in run["caps"]:
        rows += [_failure(cap["budget_bytes"], cap["error"])] if "error" in cap else _rows(cap)
    rows += [_baseline(one) for one in run["baselines"]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def splits_table(splits: Sequence[Mapping[str, Any]]) -> str:
    """A row for each number of resident blocks."""
    rows = [SPLITS_HEAD, ("---",) * len(SPLITS_HEAD)]
    for one in splits:
        figures = f"{one['seconds']:.3f}", f"{one['bound_seconds']:.3f}", f"{one['over_bound']:.3f}"
        rows.append((str(one["resident_blocks"]), f"{one['streamed_bytes_per_step'] / GB:.1f} GB", *figures))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _rows(cap: Mapping[str, Any]) -> list[tuple[str, ...]]:
    peak = f"{cap['peak_bytes'] / GIB:.2f}{'' if cap['within_budget'] else ' (over)'}"
    rate = cap.get("saturated")
    saturated = f"{rate['per_second']:.2f} with {rate['clients']}, {rate['of_compute']:.0%}" if rate else ""
    return [
        (
            _gib(cap["budget_bytes"]),
            one["kind"],
            f"{one['first_seconds']:.2f}",
            f"{one['p50_seconds']:.3f}",
            f"{one['p95_seconds']:.3f}",
            f"{one['bound_seconds']:.3f}",
            f"{one['p50_over_bound']:.2f}",
            f"{one['h2d_bytes'] / GB:.2f} in, {one['d2h_bytes'] / GB:.2f} out",
            peak,
            saturated if one["kind"] == TEXT else "",
        )
        for one in cap["series"]
    ]


def _failure(budget: int, error: str) -> tuple[str, ...]:
    return (_gib(budget), (error or "failed").splitlines()[0][:120].replace("|", "/"), *[""] * (len(HEAD) - 2))


def _baseline(one: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in one:
        return _failure(one["budget_bytes"], f"{one['how']}: {one['error']}")
    cells = _gib(one["budget_bytes"]), one["how"], "", f"{np.median(one['seconds']):.3f}", "", "", "", ""
    return (*cells, f"{one['peak_bytes'] / GIB:.2f} reserved", "")


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB"
