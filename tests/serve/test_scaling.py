"""Replicas follow the queue, up and down again, and no request is lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.server import Server, serve

SECONDS = 90.0


@pytest.fixture(scope="module")
def elastic(checkpoint: Path) -> Iterator[Server]:
    arguments = {"model": str(checkpoint), "dtype": "float32", "max_replicas": 2, "depth_per_replica": 2}
    quick = {"upscale_delay_seconds": 0.5, "downscale_delay_seconds": 2.0}
    with serve({**arguments, **quick}) as server:
        yield server


def test_replicas_follow_the_queue(elastic: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(elastic.generate, seed=seed, num_inference_steps=100) for seed in range(24)]
        elastic.wait_until(lambda: len(elastic.stages("denoise")) == 2, SECONDS, "a second replica")
        assert [answer.result(SECONDS * 2).status_code for answer in answers] == [200] * 24
    elastic.wait_until(lambda: len(elastic.stages("denoise")) == 1, SECONDS, "one replica again")
    assert elastic.generate().status_code == 200
