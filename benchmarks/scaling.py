"""Plots requests in flight and replicas of the transformer over time, under a load that rises and falls.

python -m benchmarks.scaling --output docs/scaling.png
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from matplotlib.figure import Figure

from benchmarks.server import Server, serve

LOAD = ((10.0, 1), (30.0, 8), (10.0, 1), (40.0, 0))
"""Seconds, and callers that each send one request after another meanwhile."""

STEPS = 50
SAMPLE_SECONDS = 0.5
SETTINGS = {"max_replicas": 3, "upscale_delay_seconds": 1.0, "downscale_delay_seconds": 5.0, "device": "cpu"}


@dataclass
class Run:
    """What was seen: (seconds, requests in flight, replicas), and the statuses of all answers."""

    samples: list[tuple[float, int, int]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    inside: int = 0


def call(server: Server, run: Run, until: float) -> None:
    while time.monotonic() < until:
        run.inside += 1
        answer = server.generate(f"request {time.monotonic()}", num_inference_steps=STEPS)
        run.inside -= 1
        run.statuses.append(answer.status_code)


def watch(server: Server, run: Run, over: threading.Event) -> None:
    start = time.monotonic()
    with httpx.Client(base_url=server.url, timeout=60) as http:
        while not over.wait(SAMPLE_SECONDS):
            stages = http.get("/v1/residency").json()["gpus"][0]["stages"]
            replicas = sum(stage["stage"] == "denoise" for stage in stages)
            run.samples.append((time.monotonic() - start, run.inside, replicas))


def measure() -> Run:
    run, over = Run(), threading.Event()
    with serve(SETTINGS) as server, ThreadPoolExecutor(16) as pool:
        watcher = pool.submit(watch, server, run, over)
        for seconds, callers in LOAD:
            until = time.monotonic() + seconds
            calls = [pool.submit(call, server, run, until) for _ in range(callers)]
            over.wait(seconds)
            for finished in calls:
                finished.result()
        over.set()
        watcher.result()
    return run


def plot(run: Run, file: Path) -> None:
    seconds, inside, replicas = zip(*run.samples, strict=True)
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.step(seconds, inside, where="post", label="requests in flight", color="tab:gray")
    axes.step(seconds, replicas, where="post", label="replicas of the transformer", color="tab:blue")
    axes.set_xlabel("seconds")
    axes.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/scaling.png"))
    file = parser.parse_args().output
    run = measure()
    plot(run, file)
    most, last = max(sample[2] for sample in run.samples), run.samples[-1][2]
    lost = sum(status != 200 for status in run.statuses)
    print(json.dumps({"requests": len(run.statuses), "lost": lost, "most_replicas": most, "last_replicas": last}))


if __name__ == "__main__":
    main()
