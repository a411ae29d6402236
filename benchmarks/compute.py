"""Measures a request's compute time by stage, with all weights on the card, and the rate of the link, for the bounds.

    python -m benchmarks.compute '{"settings": {"model": FOLDER}, "asks": [{"size": {"width": 1024, "height": 1024}}]}'

Prints one line of JSON, and keeps the host copies until its input ends.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.ask import Ask, numbers
from benchmarks.splits import measure_splits
from lightx2v.checkpoint import read_spec
from lightx2v.config import EngineSettings
from lightx2v.models.spec import ModelSpec
from lightx2v.models.visits import Visits
from lightx2v.pipeline import Pipeline
from lightx2v.types import StageName

WARMUP, TIMES = 2, 5
LINK_BYTES, LINK_TIMES = 512 << 20, 8
JOBS = ("run", "encode")


def measure(settings: EngineSettings, asks: list[Ask], splits: bool) -> dict[str, Any]:
    """The card, the link's rate, and of each kind of request the stages' sizes and seconds; with `splits`, the
    transformer's with a part of its blocks resident, too."""
    cuda = settings.device == "cuda"
    pipeline, spec, counter = Pipeline(settings), read_spec(settings), numbers()
    clock, link = Clock(pipeline), link_rate(cuda)
    try:
        kinds = {ask.kind: measure_kind(pipeline, clock, ask, spec, counter) for ask in asks}
    except RuntimeError:
        pipeline.close()
        raise
    text = asks[0].request(spec, next(counter), ())
    return {
        "gpu": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "kinds": kinds,
        "splits": measure_splits(pipeline, text, lambda: clock.read()["denoise"], link) if splits else [],
        "link_bytes_per_second": link,
    }


class Clock:
    """Seconds that the stages of a pipeline compute, whatever is done around it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._seconds: dict[StageName, float] = defaultdict(float)
        for stage in pipeline._stages.values():
            for job in JOBS:
                if hasattr(stage, job):
                    setattr(stage, job, self._timed(stage.name, getattr(stage, job)))

    def read(self) -> dict[StageName, float]:
        """By stage, since the last time."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds

    def _timed(self, name: StageName, job: Callable[..., Visits[Any]]) -> Callable[..., Visits[Any]]:
        def run(*inputs: Any) -> Visits[Any]:
            synchronise()
            start = time.perf_counter()
            result = yield from job(*inputs)
            synchronise()
            self._seconds[name] += time.perf_counter() - start
            return result

        return run


def measure_kind(pipeline: Pipeline, clock: Clock, ask: Ask, spec: ModelSpec, counter: Iterator[int]) -> dict[str, Any]:
    """Each stage's shortest time of a few warm requests. Raises RuntimeError if weights moved meanwhile."""
    references = ask.pictures(spec)
    runs, whole = [], []
    for turn in range(WARMUP + TIMES):
        if turn == WARMUP:
            moved = pipeline._device.h2d_bytes
        request = ask.request(spec, next(counter), references)
        start = time.perf_counter()
        pipeline.generate(request, references)
        whole.append(time.perf_counter() - start)
        runs.append(clock.read())
    if pipeline._device.h2d_bytes > moved:
        raise RuntimeError(f"{ask.kind}: not everything fits on this card, so its computation was not measured")
    return {
        "seconds": {name: min(run[name] for run in runs[WARMUP:]) for name in runs[-1]},
        "pipeline_seconds": min(whole[WARMUP:]),
        "sizes": [asdict(size) for size in pipeline.sizes(request)],
    }


def link_rate(cuda: bool) -> float:
    """Bytes per second from pinned memory to the card, the best of a few large copies."""
    host = torch.ones(LINK_BYTES, dtype=torch.uint8, pin_memory=cuda)
    there = torch.empty_like(host, device="cuda" if cuda else "cpu")
    seconds = []
    for _ in range(LINK_TIMES):
        synchronise()
        start = time.perf_counter()
        there.copy_(host, non_blocking=True)
        synchronise()
        seconds.append(time.perf_counter() - start)
    return LINK_BYTES / min(seconds)


def synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def parse(text: str) -> tuple[EngineSettings, list[Ask], bool]:
    values = json.loads(text)
    known = {key: value for key, value in values["settings"].items() if key in EngineSettings.model_fields}
    return EngineSettings(**known), [Ask.read(ask) for ask in values["asks"]], values.get("splits", False)


def main() -> None:
    print(json.dumps(measure(*parse(sys.argv[1]))), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
