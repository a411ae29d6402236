"""What a server makes when more is asked of it than it can make: it should make as much as it can, and refuse the rest.

    python -m benchmarks.overload [FOLDER] [--timeout 5] [--seconds 300] [--steps 12] [--set device=cpu]

On one server, whose requests have `--timeout` seconds:
- two clients, and then twenty-four, each for a part of the time (`--clients-seconds`);
- arrivals at 0.9 times and at 3 times what two clients reached, each for `--seconds`.

It prints the pictures a second that came in time, those that came late, and how fast the refusals were.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ask import Ask, numbers
from benchmarks.load.arrivals import poisson
from benchmarks.load.measure import Load, measure_clients, measure_closed, measure_open
from benchmarks.load.mix import even
from benchmarks.load.options import EVERY_PROMPT, add_ask, add_settings
from benchmarks.load.summary import ratio, show
from benchmarks.server import serve
from lightx2v.config import BUNDLED_MODEL
from lightx2v.types import Size

FEW, MANY = 2, 24
LESS, MORE = 0.9, 3.0
WARM_UP = 8
SEED = 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    settings = {**EVERY_PROMPT, "max_replicas": 1, "request_timeout_seconds": options.timeout, **dict(options.set)}
    loads: dict[str, Load] = {}

    def add(name: str, load: Load) -> None:
        loads[name] = load
        show(name, load.figures)

    with serve(settings | {"model": str(options.folder)}) as server:
        calls = even(Ask(options.size, options.steps, options.guidance)).calls(numbers(), SEED)
        measure_closed(server.url, calls, FEW, WARM_UP)
        for clients in (FEW, MANY):
            add(name_of(clients), measure_clients(server.url, calls, clients, options.clients_seconds, options.timeout))
        rate = loads[name_of(FEW)].per_second
        for times in (LESS, MORE):
            arrivals = poisson(times * rate, options.seconds, SEED)
            add(f"{times} x", measure_open(server.url, calls, arrivals, options.seconds, options.timeout))
    return summary(loads)


def name_of(clients: int) -> str:
    return f"{clients} clients"


def summary(loads: dict[str, Load]) -> dict[str, Any]:
    """The parts, and the ratios of pictures a second in time; of the most loaded also what was late or slow."""
    more = loads[f"{MORE} x"].figures
    return {
        "many_clients_of_few": ratio(loads[name_of(MANY)].per_second, loads[name_of(FEW)].per_second),
        "overloaded_of_below": ratio(loads[f"{MORE} x"].per_second, loads[f"{LESS} x"].per_second),
        "after_deadline": sum(load.figures["after_deadline"] for load in loads.values()),
        "refusals": more["failures"],
        "parts": {name: load.figures for name, load in loads.items()},
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--timeout", type=float, default=5.0, help="request_timeout_seconds of the server")
    parser.add_argument("--seconds", type=float, default=300.0, help="of each series of arrivals")
    parser.add_argument("--clients-seconds", type=float, default=60.0, help="of each number of clients")
    parser.add_argument("--output", type=Path, help="a JSON file")
    add_ask(parser, Size(128, 128))
    add_settings(parser)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    result = measure(options)
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
