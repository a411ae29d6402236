"""The table of `benchmarks.together`: a row for each server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GIB, GB = 2**30, 1e9
HEAD = (
    *(
        "cap",
        "settings",
        "alone p50, s",
        "bound, s",
        "pictures/s",
        "of 1/compute",
        "GB a picture",
        "together p50, p95, s",
    ),
    *("jobs at once", "p95 at a share, s", "of alone", "M/D/1's p95, s", "other pictures", "peak, GiB"),
)


def table(servers: Sequence[Mapping[str, Any]]) -> str:
    """A part that was not measured is an empty cell."""
    rows = [HEAD, ("---",) * len(HEAD), *(row for server in servers for row in _rows(server))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _rows(server: Mapping[str, Any]) -> list[tuple[str, ...]]:
    changed = ", ".join(f"{name}={value}" for name, value in server["changed"].items())
    cells = f"{server['budget_bytes'] / GIB:.2f} GiB", changed
    row = (*cells, *_alone(server), *_closed(server), *_open(server), _differ(server), _peak(server))
    if "error" not in server:
        return [row]
    error = (server["error"] or "failed").splitlines()[0][:120].replace("|", "/")
    return [row, (cells[0], error, *[""] * (len(HEAD) - 2))]


def _alone(server: Mapping[str, Any]) -> tuple[str, ...]:
    series = server.get("alone", {"series": []})["series"]
    return tuple(", ".join(f"{one[key]:.3f}" for one in series) for key in ("p50_seconds", "bound_seconds"))


def _closed(server: Mapping[str, Any]) -> tuple[str, ...]:
    if "closed" not in server:
        return ("",) * 5
    one = server["closed"]
    seconds = ", ".join(f"{one['seconds'][key]:.2f}" for key in ("p50", "p95"))
    rate = f"{one['per_second']:.2f} with {one['clients']}", f"{one['of_compute']:.0%}"
    return (*rate, f"{one['h2d_bytes_per_picture'] / GB:.2f}", seconds, _cohorts(one["cohorts"]))


def _cohorts(cohorts: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{name.split()[-1]} {jobs['mean']:.1f} (most {jobs['most']})" for name, jobs in cohorts.items())


def _open(server: Mapping[str, Any]) -> tuple[str, ...]:
    if "open" not in server:
        return ("",) * 3
    one = server["open"]
    p95, alone = one["seconds"]["p95"], server["alone"]["series"][0]["p50_seconds"]
    return f"{p95:.2f} at {one['share']:.0%}", f"{p95 / alone:.1f}", f"{one['md1_p95_seconds']:.2f}"


def _differ(server: Mapping[str, Any]) -> str:
    parts = [f"{server['bits']['differ']} of {server['bits']['compared']}"] if "bits" in server else []
    if server.get("closed", {}).get("compared_with_servers"):
        one = server["closed"]
        parts.append(f"{one['differ_from_servers']} of {one['compared_with_servers']} beside other servers")
    return ", ".join(parts)


def _peak(server: Mapping[str, Any]) -> str:
    if "memory" not in server:
        return ""
    memory = server["memory"]
    return f"{memory['peak_bytes'] / GIB:.2f}{'' if memory['within_budget'] else ' (over)'}"
