"""Measures requests over HTTP under memory caps: seconds, bytes moved, the driver's count of memory, and the bound.

python -m benchmarks.checkpoint /fast/klein-9b --model klein-9b
python -m benchmarks.gpu /fast/klein-9b --budgets 31.35GiB,24GiB,16GiB,12GiB --references 2 --saturate 4 --splits \\
    --output benchmarks/results/

The compute time of a request and the rate of the link are measured first, in one process with all weights on the card;
`--compute` takes them from an earlier run's file. The host copies are kept from the first to the last cap.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.ask import Ask, numbers
from benchmarks.computation import measure_computation, read_computation
from benchmarks.gpu_memory import Watch, contexts
from benchmarks.load.measure import measure_closed
from benchmarks.load.mix import even
from benchmarks.load.options import add_ask, add_settings
from benchmarks.report import summarise, summarise_rate, table
from benchmarks.series import run_series
from benchmarks.server import ROOT, Server
from benchmarks.started import FAILURES, exit_on_sigterm, started
from deployments.card.host_copies import HostCopies
from deployments.card.memory_probe import open_probe
from lightx2v.config import parse_bytes
from lightx2v.types import Size

BASELINE_SECONDS = 240.0
BASELINES = ("group-offload", "pinned-swap")
PER_CLIENT = 4
"""Requests that each client sends when the server is saturated."""


class Run:
    """The results of one checkpoint, written to disk after every part."""

    def __init__(self, options: argparse.Namespace) -> None:
        now = datetime.datetime.now(tz=datetime.UTC)
        self._options = options
        self._host_copies = HostCopies()
        self._settings = {"model": str(options.checkpoint), "device": "cuda"} | dict(options.set)
        self._file = options.output / f"{now:%Y-%m-%d-%H%M%S}-{options.checkpoint.name}.json"
        self._asks = [Ask(options.size, options.steps, options.guidance)]
        if options.references:
            self._asks.append(Ask(options.size, options.steps, options.guidance, options.references))
        self.result: dict[str, Any] = {
            "date": f"{now:%Y-%m-%d}",
            "settings": self._settings | {"model": options.checkpoint.name},
            "caps": [],
            "baselines": [],
        }
        self.result["asks"] = [asdict(ask) for ask in self._asks]

    def measure(self) -> None:
        options = self._options
        compute = self.computation()
        self.result |= {"gpu": compute["gpu"], "torch": compute["torch"], "compute": compute}
        for budget in options.budgets:
            self._add("caps", self._measure_cap(budget, compute))
        for how in BASELINES if options.baselines else ():
            largest = max(options.budgets)
            self._add("baselines", measure_baseline(options.checkpoint, how, largest, self._asks[0], options.set))

    def _add(self, part: str, figures: dict[str, Any]) -> None:
        self.result[part].append(figures)
        self._file.write_text(json.dumps(self.result, indent=1) + "\n")
        print(table({"caps": [], "baselines": []} | {part: [figures]}), flush=True)

    def computation(self) -> dict[str, Any]:
        """Of an earlier run, or measured now."""
        if self._options.compute:
            return read_computation(self._options.compute, self.result["settings"], self._asks)
        return measure_computation(self._settings, self._asks, self._host_copies, self._options.splits)

    def _measure_cap(self, budget: int, compute: dict[str, Any]) -> dict[str, Any]:
        head = {"budget_bytes": budget}
        log = self._file.with_name(f"{self._file.stem}-{budget / 2**30:.2f}GiB.log")
        try:
            with started(self._settings | {"gpu_budget": budget}, self._host_copies, log) as (server, ready):
                return head | {"ready_seconds": ready} | self._ask(server, budget, compute)
        except FAILURES as error:
            return head | {"error": str(error)}

    def _ask(self, server: Server, budget: int, compute: dict[str, Any]) -> dict[str, Any]:
        options, counter = self._options, numbers()
        probe = open_probe(server.card()["id"])
        with Watch(probe) as watch:
            series = [run_series(server, ask, options.requests, counter) for ask in self._asks]
            card = server.rest()
            room = budget - contexts(card, probe.used())
            figures: dict[str, Any] = {"series": [summarise(one, compute, room) for one in series], "card": card}
            if options.saturate:
                rate = saturate(server, self._asks[0], options.saturate, counter)
                figures["saturated"] = summarise_rate(rate, options.saturate, compute, room)
        within = watch.peak <= budget
        return figures | {"contexts_bytes": budget - room, "peak_bytes": watch.peak, "within_budget": within}


def measure_baseline(
    checkpoint: Path | str, how: str, budget: int, ask: Ask, settings: Sequence[tuple[str, Any]]
) -> dict[str, Any]:
    """What `benchmarks.baseline` prints, or an `error`."""
    command = [sys.executable, "-m", "benchmarks.baseline", str(checkpoint), "--how", how]
    command += ["--budget", str(budget), "--size", str(ask.size.width), str(ask.size.height)]
    command += ["--steps", str(ask.steps or 4), "--device", dict(settings).get("device", "cuda")]
    head = {"how": how, "budget_bytes": budget}
    try:
        ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=BASELINE_SECONDS)
    except subprocess.TimeoutExpired:
        return head | {"error": f"not done after {BASELINE_SECONDS:.0f} s"}
    if ended.returncode:
        return head | {"error": f"ended with {ended.returncode}"}
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def saturate(server: Server, ask: Ask, clients: int, counter: Iterator[int]) -> float:
    """Pictures per second of so many clients at once. Raises RuntimeError if a request fails."""
    load = measure_closed(server.url, even(ask).calls(counter, 0), clients, clients * PER_CLIENT)
    if load.figures["failures"]:
        raise RuntimeError(f"{clients} clients at once: {load.figures['failures']}")
    return load.per_second


def parse_budgets(text: str) -> list[int]:
    """'24GiB,16GiB' as bytes. Raises ValueError."""
    return [parse_bytes(part) for part in text.split(",")]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--budgets", type=parse_budgets, default=parse_budgets("31.35GiB"), help="caps, one by one")
    parser.add_argument("--output", type=Path, default=Path(), help="a folder for the JSON and the servers' logs")
    parser.add_argument("--requests", type=int, default=12, help="of each kind, after a first one")
    parser.add_argument("--references", type=int, default=0, help="so many pictures in a second kind of request")
    parser.add_argument("--saturate", type=int, default=0, help="so many clients at once")
    add_ask(parser, Size(1024, 1024))
    add_settings(parser)
    parser.add_argument("--compute", type=Path, help="an earlier run's file, whose computation and link hold here too")
    parser.add_argument("--splits", action="store_true", help="also the transformer at every split")
    parser.add_argument("--baselines", action="store_true", help="of FLUX.2 klein only")
    return parser.parse_args(arguments)


def main() -> None:
    exit_on_sigterm()
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    run.measure()
    print(f"{run.result['gpu']}, torch {run.result['torch']}, {run.result['date']}\n{table(run.result)}")


if __name__ == "__main__":
    main()
