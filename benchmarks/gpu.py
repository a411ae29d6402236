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
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.ask import Ask, numbers
from benchmarks.gpu_memory import Watch, contexts
from benchmarks.load import run_series, saturate
from benchmarks.report import splits_table, summarise, summarise_rate, table
from benchmarks.server import ROOT, Server, serve
from deployments.card.host_copies import HostCopies
from deployments.card.memory_probe import open_probe
from deployments.settings import ModelSettings
from lightx2v.config import parse_bytes, parse_settings
from lightx2v.errors import InvalidSettings
from lightx2v.types import Size

READY_SECONDS = 400.0
BASELINE_SECONDS = 240.0
EVERY_LINE = {"RAY_DEDUP_LOGS": "0"}
"""Serve logs the duration of every call of a stage; Ray would print only one of many."""
BASELINES = ("group-offload", "pinned-swap")
FAILURES = (RuntimeError, OSError, ValueError, HTTPException, httpx.HTTPError)
"""Failures of one cap, after which the other caps are still measured."""


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
        compute = self._read_compute() if options.compute else self._measure_compute()
        self.result |= {"gpu": compute["gpu"], "torch": compute["torch"], "compute": compute}
        for budget in options.budgets:
            self._add("caps", self._measure_cap(budget, compute))
        for how in BASELINES if options.baselines else ():
            self._add("baselines", self._measure_baseline(how))

    def _add(self, part: str, figures: dict[str, Any]) -> None:
        self.result[part].append(figures)
        self._file.write_text(json.dumps(self.result, indent=1) + "\n")
        print(table({"caps": [], "baselines": []} | {part: [figures]}), flush=True)

    def _read_compute(self) -> dict[str, Any]:
        """Raises RuntimeError for what was measured of something else."""
        earlier: dict[str, Any] = json.loads(self._options.compute.read_text())
        own = json.loads(json.dumps(self.result))
        if earlier["settings"] != own["settings"] or any(ask not in earlier["asks"] for ask in own["asks"]):
            raise RuntimeError(f"{self._options.compute} is of {earlier['settings']}, {earlier['asks']}")
        compute: dict[str, Any] = earlier["compute"]
        return compute

    def _measure_compute(self) -> dict[str, Any]:
        """In a process of its own, so that none of its memory is on the card afterwards; its host copies stay."""
        asked = {"settings": self._settings, "asks": self.result["asks"], "splits": self._options.splits}
        command = [sys.executable, "-m", "benchmarks.compute", json.dumps(asked)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            line = process.stdout.readline()
            self._host_copies.hold(process.pid)
            process.stdin.close()
        if not line:
            raise RuntimeError("the computation could not be measured; the reason is above")
        compute: dict[str, Any] = json.loads(line)
        print(json.dumps({key: value for key, value in compute.items() if key not in ("kinds", "splits")}), flush=True)
        if compute["splits"]:
            print(splits_table(compute["splits"]), flush=True)
        for kind, figures in compute["kinds"].items():
            print(
                kind, json.dumps(figures["seconds"]), f"{figures['pipeline_seconds']:.3f} s in one process", flush=True
            )
        return compute

    def _measure_cap(self, budget: int, compute: dict[str, Any]) -> dict[str, Any]:
        head = {"budget_bytes": budget}
        log = self._file.with_name(f"{self._file.stem}-{budget / 2**30:.2f}GiB.log")
        start = datetime.datetime.now(tz=datetime.UTC)
        try:
            arguments = self._settings | {"gpu_budget": budget}
            with serve(arguments, environment=EVERY_LINE, ready=False, log=log) as server:
                await_ready(server)
                ready = datetime.datetime.now(tz=datetime.UTC) - start
                for stage in server.card()["stages"]:
                    self._host_copies.hold(stage["pid"])
                return head | {"ready_seconds": ready.total_seconds()} | self._ask(server, budget, compute)
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

    def _measure_baseline(self, how: str) -> dict[str, Any]:
        """Under the largest cap."""
        options = self._options
        budget, size = max(options.budgets), options.size
        command = [sys.executable, "-m", "benchmarks.baseline", str(options.checkpoint), "--how", how]
        command += ["--budget", str(budget), "--size", str(size.width), str(size.height)]
        command += ["--steps", str(options.steps or 4), "--device", self._settings["device"]]
        head = {"how": how, "budget_bytes": budget}
        try:
            ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=BASELINE_SECONDS)
        except subprocess.TimeoutExpired:
            return head | {"error": f"not done after {BASELINE_SECONDS:.0f} s"}
        if ended.returncode:
            return head | {"error": f"ended with {ended.returncode}"}
        figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return figures


def await_ready(server: Server) -> None:
    """Raises RuntimeError, with the server's reason, if it never will be."""
    health = server.wait_until(lambda: decided(server.http.get("/health").json()), READY_SECONDS, "readiness")
    if health["status"] == "failed":
        raise RuntimeError(health["reason"])


def decided(health: dict[str, str]) -> dict[str, str] | None:
    return health if health["status"] in ("ok", "failed") else None


def parse_setting(text: str) -> tuple[str, Any]:
    """'fp8=true' as a name and a value, which is read as YAML. Raises ArgumentTypeError, also for what no server takes:
    none would be asked before the computation has been measured."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: write name=value")
    setting = {name: yaml.safe_load(value)}
    try:
        parse_settings(ModelSettings, setting, {})
    except InvalidSettings as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name, setting[name]


def parse_budgets(text: str) -> list[int]:
    """'24GiB,16GiB' as bytes. Raises ValueError."""
    return [parse_bytes(part) for part in text.split(",")]


def parse_size(text: str) -> Size:
    """'1024x1024'. Raises ValueError."""
    width, _, height = text.partition("x")
    return Size(int(width), int(height))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--budgets", type=parse_budgets, default=parse_budgets("31.35GiB"), help="caps, one by one")
    parser.add_argument("--output", type=Path, default=Path(), help="a folder for the JSON and the servers' logs")
    parser.add_argument("--requests", type=int, default=12, help="of each kind, after a first one")
    parser.add_argument("--references", type=int, default=0, help="so many pictures in a second kind of request")
    parser.add_argument("--saturate", type=int, default=0, help="so many clients at once")
    parser.add_argument("--size", type=parse_size, default=Size(1024, 1024))
    parser.add_argument("--steps", type=int, help="absent: the model's own, as the next")
    parser.add_argument("--guidance", type=float)
    parser.add_argument(
        "--set", type=parse_setting, action="append", default=[], metavar="NAME=VALUE", help="of configs/flux2.yaml"
    )
    parser.add_argument("--compute", type=Path, help="an earlier run's file, whose computation and link hold here too")
    parser.add_argument("--splits", action="store_true", help="also the transformer at every split")
    parser.add_argument("--baselines", action="store_true", help="of FLUX.2 klein only")
    return parser.parse_args(arguments)


def main() -> None:
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # a server that is left running would keep the card
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    run.measure()
    print(f"{run.result['gpu']}, torch {run.result['torch']}, {run.result['date']}\n{table(run.result)}")


if __name__ == "__main__":
    main()
