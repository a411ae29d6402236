"""Measures one card's rate for many clients under memory caps, with and without what lets requests share a visit.

    python -m benchmarks.together /fast/klein-9b --budgets 31.35GiB,12GiB,8GiB --without max_cohort=1 --share 0.8 \\
        --compute benchmarks/results/2026-11-28-h200-klein-9b.json --output benchmarks/results
    python -m benchmarks.together /fast/klein-9b /fast/z-image-turbo --budgets 20GiB --without max_cohort=1

Of every cap: requests one after another, then clients at once, then the bits of a sample against what it makes alone,
then arrivals at a share of the clients' rate. `--without` starts a second server under each cap with other settings,
for the first two. Several checkpoints stand behind one endpoint, and their requests come mixed. Every server gets the
same requests, so the pictures of all are compared too. The file is written, and figures are printed, after each part.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.ask import Ask
from benchmarks.card_load import CardLoad, Parts
from benchmarks.computation import measure_computation, read_computation
from benchmarks.gpu import measure_baseline, parse_budgets
from benchmarks.load.options import EVERY_PROMPT, add_ask, add_settings, application, parse_setting
from benchmarks.load.summary import show
from benchmarks.load.table import table
from benchmarks.started import FAILURES, exit_on_sigterm, started
from deployments.card.host_copies import HostCopies
from lightx2v.types import Size


class Run:
    """The results of one or several checkpoints behind one endpoint."""

    def __init__(self, options: argparse.Namespace) -> None:
        now = datetime.datetime.now(tz=datetime.UTC)
        self._options = options
        self._host_copies = HostCopies()
        self._names = [Path(checkpoint).name for checkpoint in options.checkpoints]
        self._file: Path = options.output / f"{now:%Y-%m-%d-%H%M%S}-together-{'-'.join(self._names)}.json"
        self._settings = {"device": "cuda"} | dict(options.set)
        ask = Ask(options.size, options.steps, options.guidance)
        several = len(self._names) > 1
        self._asks = [replace(ask, model=name if several else None) for name in self._names]
        self._digests: dict[int, str] = {}
        self.result: dict[str, Any] = {
            "date": f"{now:%Y-%m-%d}",
            "settings": self._settings | {"models": self._names},
            "asks": [asdict(ask) for ask in self._asks],
            "servers": [],
            "baselines": [],
        }

    def measure(self) -> None:
        options = self._options
        computes = self.computations()
        self.result |= {key: computes[0][key] for key in ("gpu", "torch")}
        self.result["compute"] = dict(zip(self._names, computes, strict=True))
        for budget in options.budgets:
            for changed in [{}, dict(options.without)] if options.without else [{}]:
                self._measure_server(budget, changed, computes)
        for budget in options.baseline_budgets:
            of = measure_baseline(options.checkpoints[0], "group-offload", budget, self._asks[0], options.set)
            self.result["baselines"].append(of)
            self._write()

    def computations(self) -> list[dict[str, Any]]:
        return [self._computation(index) for index in range(len(self._names))]

    def _computation(self, index: int) -> dict[str, Any]:
        """Of an earlier run, or measured now and written for the next."""
        checkpoint, name = self._options.checkpoints[index], self._names[index]
        ask = replace(self._asks[index], model=None)
        settings = self._settings | {"model": name}
        if index < len(self._options.compute):
            return read_computation(self._options.compute[index], settings, [ask])
        compute = measure_computation(self._settings | {"model": checkpoint}, [ask], self._host_copies)
        written = {"settings": settings, "asks": [asdict(ask)], "compute": compute}
        self._file.with_name(f"{self._file.stem}-compute-{name}.json").write_text(json.dumps(written, indent=1) + "\n")
        return compute

    def _measure_server(self, budget: int, changed: dict[str, Any], computes: Sequence[dict[str, Any]]) -> None:
        entry: dict[str, Any] = {"budget_bytes": budget, "changed": changed}
        self.result["servers"].append(entry)
        print(f"{budget / 2**30:.2f} GiB {changed or ''}", flush=True)
        tail = "-".join(map(str, changed.values()))
        log = self._file.with_name(f"{self._file.stem}-{budget / 2**30:.2f}GiB{tail and '-' + tail}.log")
        arguments = {**EVERY_PROMPT, **self._settings, **changed, "gpu_budget": budget}
        try:
            with started(application(self._options.checkpoints, arguments), self._host_copies, log) as (server, ready):
                entry["ready_seconds"] = ready
                load = CardLoad(server, budget, self._asks, computes, self._digests, self._parts(changed))
                for part, figures in load.measure():
                    entry[part] = figures
                    self._write()
                    show(part, figures)
        except (*FAILURES, ExceptionGroup) as error:
            entry["error"] = str(error)
        self._write()
        print(table([entry]), flush=True)

    def _parts(self, changed: dict[str, Any]) -> Parts:
        options = self._options
        share, check = (0.0, 0) if changed else (options.share, options.check)
        return Parts(options.alone, options.clients, options.requests, share, options.seconds, check, options.deadline)

    def _write(self) -> None:
        self._file.write_text(json.dumps(self.result, indent=1) + "\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="FOLDER")
    parser.add_argument("--budgets", type=parse_budgets, default=parse_budgets("31.35GiB"), help="caps, one by one")
    parser.add_argument("--alone", type=int, default=6, help="requests one after another, of each model")
    parser.add_argument("--clients", type=int, default=8, help="so many at once")
    parser.add_argument("--requests", type=int, default=48, help="of all clients together, at least three of each")
    parser.add_argument("--share", type=float, default=0.0, help="of the clients' rate, for arrivals; 0: none")
    parser.add_argument("--seconds", type=float, default=40.0, help="of arrivals")
    parser.add_argument("--check", type=int, default=8, help="pictures to compare with those made alone")
    parser.add_argument("--deadline", type=float, help="seconds after which a picture does not count")
    parser.add_argument("--without", type=parse_setting, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--baseline-budgets", type=parse_budgets, default=[], help="caps for diffusers' group offload")
    parser.add_argument(
        "--compute", type=Path, action="append", default=[], help="an earlier run's file, of each model"
    )
    parser.add_argument("--output", type=Path, default=Path(), help="a folder for the JSON and the servers' logs")
    add_ask(parser, Size(1024, 1024))
    add_settings(parser)
    return parser.parse_args(arguments)


def main() -> None:
    exit_on_sigterm()
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    run.measure()
    print(f"{run.result['gpu']}, torch {run.result['torch']}, {run.result['date']}\n{table(run.result['servers'])}")


if __name__ == "__main__":
    main()
