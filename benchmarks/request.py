"""Measures what serving adds: a request over HTTP, and the same request by `lightx2v.pipeline` in one process.

    python -m benchmarks.request [--requests 40] [--model FOLDER] [--output FILE.json]

The pipeline is measured before the server starts and after it has ended, for what this machine can do, and in turns
with the served requests, for what is left of it beside an idle server. The ratio is that of the served requests to the
pipeline alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.server import Server, serve
from lightx2v.checkpoint import read_spec
from lightx2v.config import BUNDLED_MODEL, EngineSettings
from lightx2v.pipeline import Pipeline
from lightx2v.types import GenerateRequest

WARMUP = 3
PROCESSORS = Path("/proc/cpuinfo")


def timed(make: Callable[[], Any]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    make()
    return (time.perf_counter() - start) * 1e3


class Sides:
    """Both ways to a picture of one model, and the milliseconds that each took."""

    def __init__(self, model: str) -> None:
        self._settings = EngineSettings(model=model, device="cpu")
        self._spec = read_spec(self._settings)
        self.taken: dict[str, list[float]] = {"before": [], "beside": [], "after": [], "http": []}

    def measure(self, requests: int) -> None:
        """As many requests of each side, each with its own prompt."""
        self._alone("before", requests)
        pipeline = Pipeline(self._settings)
        with serve({"model": self._settings.model, "device": "cpu", "max_replicas": 1}) as server:
            for request in self._requests(requests):
                self.taken["beside"].append(timed(lambda request=request: pipeline.generate(request)))
                self.taken["http"].append(timed(lambda request=request: succeed(server, request)))
        pipeline.close()
        self._alone("after", requests)

    def _alone(self, when: str, requests: int) -> None:
        pipeline = Pipeline(self._settings)
        made = (lambda request=request: pipeline.generate(request) for request in self._requests(requests))
        self.taken[when] += map(timed, made)
        pipeline.close()

    def _requests(self, count: int) -> Iterable[GenerateRequest]:
        spec = self._spec
        for turn in range(WARMUP + count):
            yield GenerateRequest("turn", f"circle {turn}", spec.size, spec.steps, turn, spec.guidance)


def succeed(server: Server, request: GenerateRequest) -> None:
    server.generate(request.prompt, seed=request.seed).raise_for_status()


def summary(model: str, taken: dict[str, list[float]]) -> dict[str, Any]:
    """The quantiles of each side without its first requests. What serving adds is the difference of medians."""
    counted = {name: times[WARMUP:] for name, times in taken.items()}
    alone, served = statistics.median(counted["before"] + counted["after"]), statistics.median(counted["http"])
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "model": Path(model).name,
        "requests": len(counted["http"]),
        "pipeline_ms": {name: quantiles(counted[name]) for name in ("before", "beside", "after")},
        "http_ms": quantiles(counted["http"]),
        "added_ms_p50": round(served - alone, 1),
        "ratio_p50": served / alone,
    }


def processor() -> str:
    """The model of the CPU."""
    lines = PROCESSORS.read_text().splitlines() if PROCESSORS.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20)
    return {"p5": round(cuts[0], 1), "p50": round(statistics.median(values), 1), "p95": round(cuts[-1], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUNDLED_MODEL))
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    sides = Sides(options.model)
    sides.measure(options.requests)
    result = json.dumps(summary(options.model, sides.taken), indent=1)
    print(result)
    if options.output:
        options.output.write_text(result + "\n")


if __name__ == "__main__":
    main()
