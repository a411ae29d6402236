"""Measures what serving adds: a request over HTTP, and the same request by `lightx2v.pipeline` in one process.

    python -m benchmarks.request [--requests 40] [--model FOLDER] [--output FILE.json]

Both alternate in one run, so the ratio holds if the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.server import Server, serve
from lightx2v.checkpoint import read_spec
from lightx2v.config import BUNDLED_MODEL, EngineSettings
from lightx2v.pipeline import Pipeline
from lightx2v.types import GenerateRequest

WARMUP = 3


def timed(make: Callable[[], Any]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    make()
    return (time.perf_counter() - start) * 1e3


def measure(model: str, requests: int) -> dict[str, Any]:
    """The medians of both, their ratio and their difference."""
    settings = EngineSettings(model=model, device="cpu")
    pipeline, spec = Pipeline(settings), read_spec(settings)
    served: list[float] = []
    direct: list[float] = []
    with serve({"model": model, "device": "cpu", "max_replicas": 1}) as server:
        for turn in range(WARMUP + requests):
            request = GenerateRequest("turn", f"circle {turn}", spec.size, spec.steps, turn, spec.guidance)
            direct.append(timed(lambda request=request: pipeline.generate(request)))
            served.append(timed(lambda request=request: succeed(server, request)))
    return summary(model, direct[WARMUP:], served[WARMUP:])


def succeed(server: Server, request: GenerateRequest) -> None:
    server.generate(request.prompt, seed=request.seed).raise_for_status()


def summary(model: str, direct: list[float], served: list[float]) -> dict[str, Any]:
    added = [one - other for one, other in zip(served, direct, strict=True)]
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "model": Path(model).name,
        "requests": len(direct),
        "pipeline_ms": quantiles(direct),
        "http_ms": quantiles(served),
        "added_ms": quantiles(added),
        "ratio_p50": statistics.median(served) / statistics.median(direct),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20)
    return {"p5": round(cuts[0], 1), "p50": round(statistics.median(values), 1), "p95": round(cuts[-1], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUNDLED_MODEL))
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result = json.dumps(measure(options.model, options.requests), indent=1)
    print(result)
    if options.output:
        options.output.write_text(result + "\n")


if __name__ == "__main__":
    main()
