"""What it costs that requests to two models come mixed, on a card that holds one of them: bytes moved per picture.

    python -m benchmarks.turns [FOLDER FOLDER] [--clients 8] [--requests 24] [--size 64x64] [--steps 2]

The same numbers of requests are made in two ways on one server: all of one model and then all of the other, and mixed.
The first moves as little as can be. It prints the bytes per picture of both, and their ratio. Without folders, the
bundled model is served under two names, on a CPU: each name has its own weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.ask import Ask, numbers
from benchmarks.load.measure import Load, differing, measure_closed
from benchmarks.load.mix import Call
from benchmarks.load.options import EVERY_PROMPT, add_ask, add_settings
from benchmarks.load.summary import ratio
from benchmarks.server import serve
from lightx2v.checkpoint import read_spec
from lightx2v.config import BUNDLED_MODEL, EngineSettings
from lightx2v.pipeline import Pipeline
from lightx2v.types import Size

NAMES = ("one", "other")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Raises RuntimeError if a request fails."""
    asks = [Ask(options.size, options.steps, options.guidance, model=name) for name in NAMES]
    counter = numbers()
    warm = [Call(ask, next(counter)) for ask in asks * 2]
    ordered, mixed = [[Call(ask, next(counter)) for ask in asks for _ in range(options.requests)] for _ in range(2)]
    Random(0).shuffle(mixed)
    settings = {**EVERY_PROMPT, "device": "cpu", "max_replicas": 1, **dict(options.set)}
    budget = budget_for_one(options.folders, asks[0], settings)
    models = [{"model": str(folder), "name": name} for folder, name in zip(options.folders, NAMES, strict=True)]
    with serve(settings | {"gpu_budget": budget, "models": models}) as server:
        measure_closed(server.url, iter(warm), 1, len(warm))
        loads = {"ordered": _load(server.url, ordered, options), "mixed": _load(server.url, mixed, options)}
        bits = differing(server.url, loads["mixed"].answers, options.check)
    return summary(budget, loads) | {"bits": bits}


def budget_for_one(folders: Sequence[Path], ask: Ask, settings: dict[str, Any]) -> int:
    """Bytes that hold the larger of the models whole, with its largest activations; all of both they do not hold."""
    engine = {key: value for key, value in settings.items() if key in EngineSettings.model_fields}
    found = []
    for folder in folders:
        own = EngineSettings(**engine | {"model": str(folder)})
        pipeline = Pipeline(own)
        sizes = pipeline.sizes(ask.request(read_spec(own), 0, ()))
        pipeline.close()
        found.append(sum(size.reachable for size in sizes) + max(size.activation_bytes for size in sizes))
    return max(found)


def summary(budget: int, loads: dict[str, Load]) -> dict[str, Any]:
    moved = {name: load.figures["h2d_bytes_per_picture"] for name, load in loads.items()}
    head = {"ratio_of_bytes": ratio(moved["mixed"], moved["ordered"]), "budget_bytes": budget}
    return head | {name: load.figures for name, load in loads.items()}


def _load(url: str, calls: Sequence[Call], options: argparse.Namespace) -> Load:
    load = measure_closed(url, iter(calls), options.clients, len(calls))
    if load.figures["failures"]:
        raise RuntimeError(f"requests failed: {load.figures['failures']}")
    return load


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[BUNDLED_MODEL, BUNDLED_MODEL], metavar="FOLDER")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=24, help="to each of the models, in each of the ways")
    parser.add_argument("--check", type=int, default=8, help="pictures to compare with those made alone")
    add_ask(parser, Size(64, 64))
    add_settings(parser)
    options = parser.parse_args(arguments)
    if len(options.folders) != len(NAMES):
        parser.error("give two folders, or none")
    return options


def main() -> None:
    print(json.dumps(measure(parse()), indent=1))


if __name__ == "__main__":
    main()
