"""Loads a server: a closed loop of clients, an open loop of arrivals, or one after the other.

    python -m benchmarks.load http://127.0.0.1:8000 --clients 8 --requests 48 --size 1024x1024 --check 8
    python -m benchmarks.load http://127.0.0.1:8000 --rate 2.5 --seconds 60 --burst 5 --mix mix.yaml --deadline 30
    python -m benchmarks.load FOLDER [FOLDER ...] --clients 8 --share 0.8 --seconds 60 --set gpu_budget=24GiB

A target is a server's URL, or checkpoints for which a server is started. `--share` is the open loop's rate as a share
of what the closed loop before it reached. Every request has its own prompt; run again on the same server with another
`--seed`, because the prompts of a seed are the same. It prints the figures and writes them to `--output`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.ask import numbers
from benchmarks.load.arrivals import bursts
from benchmarks.load.measure import Load, differing, measure_closed, measure_open
from benchmarks.load.options import EVERY_PROMPT, add_ask, add_settings, application, mix_of
from benchmarks.load.summary import show
from benchmarks.started import started
from deployments.card.host_copies import HostCopies
from lightx2v.types import Size

PROMPTS_PER_SEED = 1_000_000


def measure(url: str, options: argparse.Namespace, models: list[str]) -> dict[str, Any]:
    """The figures of each loop, and of the comparison of pictures."""
    mix, result = mix_of(options, models), dict[str, Any]()
    calls = mix.calls(numbers(1 + options.seed * PROMPTS_PER_SEED), options.seed)
    loads: list[Load] = []
    rate: float | None = options.rate

    def add(name: str, figures: dict[str, Any]) -> None:
        result[name] = figures
        show(name, figures)

    if options.clients:
        loads.append(measure_closed(url, calls, options.clients, options.requests, options.deadline))
        add("closed", loads[-1].figures)
        rate = options.share * loads[-1].per_second if options.share else rate
    if rate:
        arrivals = bursts(rate, options.burst, options.seconds, options.seed)
        loads.append(measure_open(url, calls, arrivals, options.seconds, options.deadline))
        add("open", loads[-1].figures)
    if options.check is not None:
        answers = [answer for load in loads for answer in load.answers]
        add("bits", differing(options.against or url, answers, options.check or None))
    return result


@contextmanager
def served(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """The URL of a server, and the names of its models if it was started here."""
    targets: list[str] = options.targets
    if targets[0].startswith("http"):
        yield targets[0], []
        return
    with started(application(targets, {**EVERY_PROMPT, **dict(options.set)}), HostCopies()) as (server, _):
        yield server.url, [Path(target).name for target in targets]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="+", metavar="URL or FOLDER")
    parser.add_argument("--clients", type=int, default=0, help="closed loop: so many clients at once")
    parser.add_argument("--requests", type=int, default=48, help="of the closed loop, at least three a client")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--rate", type=float, help="open loop: requests per second")
    rate.add_argument("--share", type=float, help="open loop: the rate as a share of the closed loop's")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the open loop")
    parser.add_argument("--burst", type=int, default=1, help="open loop: so many requests come at one moment")
    parser.add_argument("--mix", type=Path, help="a YAML file of kinds of requests, in place of the next options")
    add_ask(parser, Size(1024, 1024))
    parser.add_argument("--deadline", type=float, help="seconds after which a picture does not count")
    parser.add_argument("--check", type=int, nargs="?", const=0, metavar="N", help="compare N pictures, or all")
    parser.add_argument("--against", metavar="URL", help="another server that makes the pictures to compare with")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals, kinds and prompts")
    add_settings(parser)
    parser.add_argument("--output", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    if not options.clients and not options.rate:
        parser.error("nothing to do: give --clients, --rate, or --clients with --share")
    return options


def main() -> None:
    options = parse()
    with served(options) as (url, models):
        result = measure(url, options, models)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
