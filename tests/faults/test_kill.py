"""SIGKILL, at real processes of a server under a budget below the sum of its stages."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.pictures import asked, made
from benchmarks.server import Server, serve, under
from lightx2v.pipeline import Pipeline
from lightx2v.types import Size
from lightx2v.weights.shared_memory import used_by

PROMPT = "a green triangle"
STEPS = 60
FEW_STEPS = 2
"""For the stages that run once: so they do it often."""
TIMEOUT_SECONDS = 180.0
"""Enough for all requests and the start of a stage, so that none is refused because of the time."""


@pytest.fixture(scope="module")
def tight(checkpoint: Path, pipeline: Pipeline) -> Iterator[Server]:
    sizes = pipeline.sizes(asked(PROMPT, Size(64, 64), 0))
    budget = max(size.reachable + size.activation_bytes for size in sizes) + 200_000
    arguments = under(budget, checkpoint) | {"max_replicas": 1, "request_timeout_seconds": TIMEOUT_SECONDS}
    with serve(arguments) as server:
        yield server


def running(server: Server, stage: str) -> int | None:
    """The pid of a stage that holds a running lease."""
    return next((entry["pid"] for entry in server.stages(stage) if entry["running"]), None)


def whole(card: dict[str, Any]) -> dict[str, Any] | None:
    return card if len(card["stages"]) == 3 else None


def copies(pid: int) -> dict[str, int]:
    """The host copies that a process has: names, and which memory it is."""
    held = used_by(pid)
    try:
        return {name: os.fstat(descriptor).st_ino for name, descriptor in held.items()}
    finally:
        for descriptor in held.values():
            os.close(descriptor)


def test_a_successor_attaches_to_the_weights_of_the_dead(tight: Server) -> None:
    """Nothing is read from disk again, though nobody else had them."""
    (stage,) = tight.stages("denoise")
    before = copies(stage["pid"])
    os.kill(stage["pid"], signal.SIGKILL)
    successor = tight.wait_until(
        lambda: next((other["pid"] for other in tight.stages("denoise") if other["pid"] != stage["pid"]), None)
    )
    assert before
    found = tight.wait_until(
        lambda: copies(successor), what="a host copy of the successor, which joins before it loads"
    )
    assert found == before
    tight.wait_ready()


@pytest.mark.parametrize(("stage", "steps"), [("encode", FEW_STEPS), ("denoise", STEPS), ("decode", FEW_STEPS)])
def test_a_stage_dies_in_mid_request(tight: Server, pipeline: Pipeline, stage: str, steps: int) -> None:
    """Whatever was on it is made again from the same seed, or refused in so many words; the next request is served."""
    killed = threading.Event()
    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask_until, killed, tight, seed, steps) for seed in range(6)]
        try:
            victim = tight.wait_until(lambda: running(tight, stage), TIMEOUT_SECONDS, f"a running {stage}")
            os.kill(victim, signal.SIGKILL)
        finally:
            killed.set()
        answers = [last.result(TIMEOUT_SECONDS + 5) for last in asking]
    check(answers, pipeline, steps)
    tight.wait_ready()
    assert tight.generate(PROMPT).status_code == 200
    assert victim not in [entry["pid"] for entry in tight.card()["stages"]]


def ask_until(killed: threading.Event, server: Server, seed: int, steps: int) -> httpx.Response:
    """The answer to what was asked last before that: a run of tens of milliseconds is not always seen at once."""
    while True:
        answer = server.generate(PROMPT, seed=seed, num_inference_steps=steps)
        if killed.is_set():
            return answer


def check(answers: list[httpx.Response], pipeline: Pipeline, steps: int = STEPS) -> None:
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert any(answer.status_code == 200 for answer in answers)
    for seed, answer in enumerate(answers):
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "stage_lost"
        else:
            expected = pipeline.generate(asked(PROMPT, Size(64, 64), seed, steps))
            np.testing.assert_array_equal(made(answer), expected.pixels)


def test_one_request_alone_survives_the_death_of_its_stage(tight: Server, pipeline: Pipeline) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(tight.generate, PROMPT, seed=0, num_inference_steps=STEPS)
        victim = tight.wait_until(lambda: running(tight, "denoise"), what="a running denoise")
        os.kill(victim, signal.SIGKILL)
        response = answer.result(TIMEOUT_SECONDS + 5)
    assert response.status_code == 200
    check([response], pipeline)


def test_the_coordinator_dies(tight: Server, pipeline: Pipeline) -> None:
    """What runs goes on, what waits is granted by its successor, and nobody is granted twice."""
    before = tight.wait_until(lambda: whole(tight.card()), what="the successor of who died last")
    with ThreadPoolExecutor(5) as pool:
        asked_for: list[Future[httpx.Response]] = [
            pool.submit(tight.generate, PROMPT, seed=seed, num_inference_steps=STEPS) for seed in range(4)
        ]
        tight.wait_until(lambda: running(tight, "denoise"), what="a running denoise")
        os.kill(before["coordinator_pid"], signal.SIGKILL)
        answers = [answer.result(TIMEOUT_SECONDS + 5) for answer in asked_for]
    assert [answer.status_code for answer in answers] == [200] * 4
    check(answers, pipeline)
    after = tight.card()
    assert after["epoch"] != before["epoch"]
    assert after["peak_granted_bytes"] <= after["budget_bytes"]
    assert {entry["pid"] for entry in after["stages"]} == {entry["pid"] for entry in before["stages"]}
    assert tight.generate(PROMPT).status_code == 200
