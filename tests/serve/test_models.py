"""Several models behind one endpoint, on a card that holds at most one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.pictures import asked, made
from benchmarks.server import Server, serve, under
from lightx2v.config import EngineSettings
from lightx2v.core import Size
from lightx2v.pipeline import Pipeline
from tests.checkpoints.qwen_image import write_qwen_image

PROMPT = "a red circle left of a blue square on white"
SIZE = Size(64, 64)
STEPS = 4
MODELS = ("klein", "dev", "z-image", "qwen-image")


@pytest.fixture(scope="module")
def folders(checkpoint: Path, dev: Path, z_turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    qwen_image = write_qwen_image(tmp_path_factory.mktemp("small"))
    (qwen_image / "generation_config.json").write_text(json.dumps({"size": str(SIZE)}))
    return dict(zip(MODELS, (checkpoint, dev, z_turbo, qwen_image), strict=True))


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path]) -> dict[str, Pipeline]:
    return {
        name: Pipeline(EngineSettings(model=str(folder), dtype="float32", device="cpu"))
        for name, folder in folders.items()
    }


@pytest.fixture(scope="module")
def budget(pipelines: dict[str, Pipeline]) -> int:
    """Less than the largest model needs to be whole."""
    sizes = [pipeline.sizes(asked(PROMPT, SIZE, 0, steps=STEPS)) for pipeline in pipelines.values()]
    least = max(size.least for stages in sizes for size in stages)
    largest = max(
        sum(size.reachable for size in stages) + max(size.activation_bytes for size in stages) for stages in sizes
    )
    assert least < largest
    return (least + largest) // 2


@pytest.fixture(scope="module")
def shared(folders: dict[str, Path], budget: int) -> Iterator[Server]:
    models = [{"model": str(folder), "name": name} for name, folder in folders.items()]
    with serve(under(budget, folders["klein"]) | {"models": models, "max_replicas": 1}) as server:
        yield server


def test_alternating_requests_give_what_each_model_gives_alone(
    shared: Server, pipelines: dict[str, Pipeline], budget: int
) -> None:
    """Eight at a time; no budget is exceeded."""
    turns = list(zip(cycle(pipelines), range(16), strict=False))

    def ask(turn: tuple[str, int]) -> npt.NDArray[np.uint8]:
        model, seed = turn
        return made(
            shared.generate(PROMPT, model=model, seed=seed, size=str(SIZE), num_inference_steps=STEPS, guidance_scale=1)
        )

    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(ask, turns))
    for (model, seed), picture in zip(turns, pictures, strict=True):
        expected = pipelines[model].generate(asked(PROMPT, SIZE, seed, steps=STEPS))
        np.testing.assert_array_equal(picture, expected.pixels, f"{model}, seed {seed}")
    card = shared.card()
    assert card["peak_granted_bytes"] <= card["budget_bytes"] == budget
    assert card["shrinks_total"] > 0
    assert {stage["model"] for stage in card["stages"]} == pipelines.keys()


def test_the_first_model_answers_where_none_is_named(shared: Server) -> None:
    unnamed, named = (shared.generate(PROMPT, seed=3, **model) for model in ({}, {"model": "klein"}))
    assert unnamed.json()["data"] == named.json()["data"]


def test_the_models_are_listed_and_others_refused(shared: Server) -> None:
    listed = shared.http.get("/v1/models").json()["data"]
    assert [entry["id"] for entry in listed] == list(MODELS)
    refused = shared.generate(PROMPT, model="other")
    assert refused.status_code == 404
    assert ", ".join(MODELS) in refused.json()["error"]["message"]
