"""Draws pictures a second over a card's memory, from results of `benchmarks.together` and baselines beside them.

    python -m benchmarks.figure benchmarks/results/TOGETHER.json benchmarks/results/2026-11-28-h200-klein-9b.json \\
        --output docs/memory.svg

The colours are legible on white and on black. Every point has its number, and the files are named in the figure.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

OURS, WITHOUT, OFFLOAD = "this server", "this server, without cohorts", "diffusers' group offload"
STYLES = {OURS: ("#1f8fe0", "o-", 8), WITHOUT: ("#e0761f", "s--", -16), OFFLOAD: ("#2ca05a", "^:", -16)}
"""Of each line: the colour, the marks, and how many points its numbers stand above it."""
GREY = "#808080"
GIB = 2**30
SOURCES = "from "


class Point(NamedTuple):
    """The cap, and pictures a second under it."""

    gib: float
    per_second: float


def points(results: Iterable[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """The lines of the figure, each from the smallest cap to the largest. What failed is no point."""
    found: dict[str, list[Point]] = defaultdict(list)
    for result in results:
        for name, point in _points(result):
            found[name].append(point)
    return {name: sorted(found[name]) for name in STYLES if name in found}


def most(results: Iterable[Mapping[str, Any]]) -> float | None:
    """What the card's arithmetic allows, as the first of the results has it."""
    rates = (server["closed"]["compute_per_second"] for result in results for server in _measured(result))
    return next(rates, None)


def draw(results: Sequence[Mapping[str, Any]], sources: Sequence[str], file: Path) -> None:
    """An SVG whose text is text."""
    keep: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "figure",
        "text.color": GREY,
        "axes.edgecolor": GREY,
    }
    keep |= {"axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY, "font.size": 11}
    with matplotlib.rc_context(keep):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        if bound := most(results):
            axes.axhline(bound, color=GREY, linewidth=1)
            axes.annotate("the card's arithmetic", (0.2, bound), (30, 4), textcoords="offset points")
            axes.annotate(label(bound), (0.2, bound), (0, 4), textcoords="offset points", gid="rate-bound")
        for name, line in points(results).items():
            color, style, above = STYLES[name]
            axes.plot(*zip(*line, strict=True), style, color=color, label=name)
            for point in line:
                gid = f"rate-{list(STYLES).index(name)}-{point.gib:.2f}"
                axes.annotate(
                    label(point.per_second),
                    point,
                    (0, above),
                    textcoords="offset points",
                    color=color,
                    ha="center",
                    gid=gid,
                )
        axes.set(xlabel="memory for all processes together, GiB", ylabel="pictures a second", xlim=(0, None))
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(file, transparent=True, metadata={"Date": None, "Description": SOURCES + " ".join(sources)})


def label(per_second: float) -> str:
    """A rate as the figure has it."""
    return f"{per_second:.2f}"


def _points(result: Mapping[str, Any]) -> Iterator[tuple[str, Point]]:
    for server in _measured(result):
        name = WITHOUT if server["changed"] else OURS
        yield name, Point(server["budget_bytes"] / GIB, server["closed"]["per_second"])
    for one in result.get("baselines", []):
        if one["how"] == "group-offload" and "seconds" in one:
            yield OFFLOAD, Point(one["budget_bytes"] / GIB, 1 / median(one["seconds"]))


def _measured(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [server for server in result.get("servers", []) if "closed" in server]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/memory.svg"))
    options = parser.parse_args()
    results = [json.loads(file.read_text()) for file in options.results]
    draw(results, [file.name for file in options.results], options.output)
    for name, line in points(results).items():
        print(name, ", ".join(f"{point.gib:.2f} GiB: {label(point.per_second)}" for point in line))


if __name__ == "__main__":
    main()
