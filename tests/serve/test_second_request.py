"""The report that started this: an encoder and a transformer that together exceed the card, request after request."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.pictures import asked, made, noise, png
from benchmarks.server import Server, serve, under
from lightx2v.config import EngineSettings
from lightx2v.pipeline import Pipeline
from lightx2v.residency.plan import StageSize
from lightx2v.types import Reference, Size
from tests.checkpoints.flux2 import write_klein

PROMPT = "a red circle left of a blue square on white"
LARGE = Size(96, 64)
REFERENCES = (Size(96, 64), Size(64, 80))


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seed's proportions: the encoder nearly fills the card alone."""
    return write_klein(tmp_path_factory.mktemp("heavy"), feed_forward=448)


@pytest.mark.parametrize(
    ("builder", "second"), [("tests.serve.doubles:never_releases", 503), ("deployments.app:build", 200)]
)
def test_second_request(heavy: Path, builder: str, second: int) -> None:
    """With everything kept on the card, the second request's encoder needs the transformer to give way."""
    pipeline = Pipeline(EngineSettings(model=str(heavy), dtype="float32", device="cpu"))
    budget = tight_budget(pipeline.sizes(asked(PROMPT, Size(64, 64), 0)))
    with serve(under(budget, heavy) | {"cpu_offload": False}, builder) as server:
        assert server.generate(PROMPT, seed=1).status_code == 200
        answer = server.generate(PROMPT, seed=2)
        assert answer.status_code == second
        if second == 503:
            error = answer.json()["error"]
            assert error["code"] == "out_of_memory"
            assert "denoise" in error["message"]
            assert "did not give way" in error["message"]


def tight_budget(sizes: Sequence[StageSize]) -> int:
    """Enough for any stage alone, whole and at work; too little for encoder and transformer beside each other."""
    budget = max(size.reachable + size.activation_bytes for size in sizes) + 200_000
    encode, denoise, _ = sizes
    assert budget < encode.reachable + denoise.reachable + max(encode.activation_bytes, denoise.activation_bytes)
    return budget


@pytest.fixture(scope="module")
def budget(pipeline: Pipeline) -> int:
    return tight_budget(pipeline.sizes(asked(PROMPT, LARGE, 0, references=REFERENCES)))


@pytest.fixture(scope="module")
def tight(checkpoint: Path, budget: int) -> Iterator[Server]:
    with serve(under(budget, checkpoint) | {"max_replicas": 1}) as server:
        yield server


def test_twenty_requests(tight: Server, pipeline: Pipeline, budget: int) -> None:
    """Text, two references, two sizes, one that fails and one that is cancelled, in turn; then peace."""
    with watching(tight) as seen:
        for turn in range(20):
            one_of_many(tight, pipeline, turn)
    card = tight.rest()
    assert max(card["granted_bytes"] for card in seen) <= budget
    assert card["peak_granted_bytes"] <= card["budget_bytes"] == budget
    assert card["d2h_bytes_total"] == 0
    assert card["shrinks_total"] > 0
    assert card["fetches_total"] > 0
    assert all(stage["resident_bytes"] >= stage["planned_bytes"] for stage in card["stages"])


def one_of_many(server: Server, pipeline: Pipeline, turn: int) -> None:
    if turn == 7:
        failed = server.generate(PROMPT, size="2048x2048")
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "out_of_memory")
    elif turn == 13:
        cancel_in_mid_denoise(server)
    elif turn % 3 == 0:
        references = [Reference(noise(size, turn)) for size in REFERENCES]
        answer = server.edit([png(reference.fitted) for reference in references], PROMPT, seed=str(turn))
        expected = pipeline.generate(asked(PROMPT, LARGE, turn, references=REFERENCES), references)
        np.testing.assert_array_equal(made(answer), expected.pixels)
    else:
        size = LARGE if turn % 4 == 1 else Size(64, 64)
        answer = server.generate(PROMPT, size=str(size), seed=turn)
        expected = pipeline.generate(asked(PROMPT, size, turn))
        np.testing.assert_array_equal(made(answer), expected.pixels)


def cancel_in_mid_denoise(server: Server) -> None:
    """The caller hangs up; the transformer stops long before its 100 steps are done, and its lease is back."""

    def running() -> bool:
        return bool(server.stages("denoise")[0]["running"])

    with ThreadPoolExecutor(1) as pool:
        with httpx.Client(base_url=server.url, timeout=60) as leaving:
            body = {"prompt": PROMPT, "num_inference_steps": 100}
            gone = pool.submit(leaving.post, "/v1/images/generations", json=body)
            server.wait_until(running, what="the denoising")
        assert isinstance(gone.exception(30), httpx.TransportError | RuntimeError)
    server.wait_until(lambda: not running(), 20, "the release")


class watching:
    """Samples the card's entry of /v1/residency until the block ends."""

    def __init__(self, server: Server) -> None:
        self._url = server.url
        self._over = threading.Event()
        self._seen: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> list[dict[str, Any]]:
        self._thread.start()
        return self._seen

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while not self._over.wait(0.05):
                self._seen += http.get("/v1/residency").json()["gpus"]
