"""klein-9B's shapes under a memory cap, through HTTP, on a real GPU: seconds, bytes moved, and the driver's own count.

python -m benchmarks.checkpoint /fast/klein-9b --model klein-9b
python -m benchmarks.gpu /fast/klein-9b --budget 31.35GiB --output benchmarks/results/
"""

from __future__ import annotations

import argparse
import datetime
import json
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pynvml
import torch

from lightx2v.config import parse_bytes
from lightx2v.core import Size
from tests.pictures import noise, png
from tests.server import Server, serve

SIZE = Size(1024, 1024)
SAMPLE_SECONDS = 0.05


class DriverCount:
    """Samples the driver's count of all processes on the first GPU at 20 Hz, until the block ends."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._device = pynvml.nvmlDeviceGetHandleByIndex(0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak = 0

    def __enter__(self) -> DriverCount:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def now(self) -> int:
        """Bytes that all processes together hold."""
        return sum(self.by_process().values())

    def by_process(self) -> dict[int, int]:
        """Bytes by pid."""
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(self._device)
        return {process.pid: process.usedGpuMemory or 0 for process in processes}

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, self.now())


@dataclass(frozen=True)
class Request:
    """One request's figures."""

    kind: str
    status: int
    seconds: float
    h2d_bytes: int
    resident_after: dict[str, int]


def run_one(server: Server, turn: int) -> Request:
    """Text and two references in turn, each with a prompt of its own."""
    before, start = server.card()["h2d_bytes_total"], time.monotonic()
    kind = "two references" if turn % 2 else "text"
    prompt = f"picture number {turn} of a lighthouse at dawn"
    if kind == "text":
        answer = server.generate(prompt, seed=turn, size=str(SIZE))
    else:
        answer = server.edit([png(noise(SIZE, seed)) for seed in range(2)], prompt, seed=str(turn), size=str(SIZE))
    seconds, card = time.monotonic() - start, server.card()
    resident = {stage["stage"]: stage["resident_bytes"] for stage in card["stages"]}
    print(f"{turn:2d} {kind:15s} {answer.status_code} {seconds:7.3f} s", flush=True)
    return Request(kind, answer.status_code, seconds, card["h2d_bytes_total"] - before, resident)


def measure(checkpoint: Path, budget: int, requests: int) -> dict[str, Any]:
    """Starts the server, runs the requests one after another, and reads what the card saw."""
    start = time.monotonic()
    arguments = {"model": str(checkpoint), "gpu_budget": budget, "device": "cuda"}
    with DriverCount() as driver, serve(arguments, log=Path("serve.log")) as server:
        ready = time.monotonic() - start
        made = [run_one(server, turn) for turn in range(requests)]
        card, at_rest = server.card(), driver.by_process()
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "gpu": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "budget_bytes": budget,
        "driver_peak_bytes": driver.peak,
        "driver_at_rest_bytes": at_rest,
        "within_budget": driver.peak <= budget,
        "ready_seconds": ready,
        "requests": [asdict(one) for one in made],
        "card": card,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--budget", type=parse_bytes, default=parse_bytes("31.35GiB"))
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--output", type=Path, help="a folder for the JSON of the run")
    options = parser.parse_args()
    result = measure(options.checkpoint, options.budget, options.requests)
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        name = f"{result['date']}-{options.checkpoint.name}-{options.budget / 2**30:.2f}GiB.json"
        (options.output / name).write_text(text + "\n")


if __name__ == "__main__":
    main()
