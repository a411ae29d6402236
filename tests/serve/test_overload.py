"""More requests than can be made in time: the server makes those that it can, and refuses the others at the door."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from benchmarks.server import Server, serve

SECONDS = 8.0
"""The timeout of requests."""
BODY = {"prompt": "a red circle", "num_inference_steps": 20, "size": "128x128"}


def test_a_crowd_is_refused_at_the_door(checkpoint: Path) -> None:
    """It would take two and a half times the timeout; without the door, three of five would wait for nothing.

    No replica is added: on CPUs one that starts takes the cores of those that work.
    """
    arguments = {"model": str(checkpoint), "request_timeout_seconds": SECONDS, "max_queue": 1000, "max_replicas": 1}
    with serve(arguments) as server:
        each = min(seconds_of_one(server) for _ in range(3))
        answers = ask_at_once(server, max(8, math.ceil(2.5 * SECONDS / each)))
        queue = server.http.get("/v1/residency").json()["queue"][checkpoint.name]
    made, refused, late = ([one for one in answers if one.status_code == status] for status in (200, 503, 504))
    assert len(made) + len(refused) + len(late) == len(answers)
    assert made
    assert refused
    assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
    assert all(one.json()["error"]["code"] == "queue_full" for one in refused)
    assert len(late) <= 0.1 * len(answers), "of a machine that became slower meanwhile"
    assert (queue["waiting"], queue["running"]) == (0, 0)
    assert queue["predicted_seconds"] == 0.0


def seconds_of_one(server: Server) -> float:
    start = time.monotonic()
    assert server.http.post("/v1/images/generations", json=BODY).status_code == 200
    return time.monotonic() - start


def ask_at_once(server: Server, count: int) -> list[httpx.Response]:
    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/images/generations", json=BODY, timeout=60)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))
