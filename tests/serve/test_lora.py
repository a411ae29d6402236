"""LoRAs through a real server."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.pictures import asked, made
from benchmarks.server import Server
from lightx2v.config import EngineSettings, LoraSettings
from lightx2v.pipeline import Pipeline
from lightx2v.types import ChosenLora, Size

PROMPT = "a red circle"


def test_a_request_has_the_lora_that_it_names_and_no_other(server: Server, checkpoint: Path, oil: Path) -> None:
    fields = {"size": "64x64", "seed": 7, "num_inference_steps": 2}
    before, painted, after = (
        made(server.generate(PROMPT, **fields, **chosen)) for chosen in ({}, {"lora": "oil", "lora_scale": 0.5}, {})
    )
    settings = EngineSettings(
        model=str(checkpoint), dtype="float32", device="cpu", loras={"oil": LoraSettings(path=str(oil))}
    )
    with closing(Pipeline(settings)) as pipeline:
        plain = asked(PROMPT, Size(64, 64), 7, steps=2)
        np.testing.assert_array_equal(before, pipeline.generate(plain).pixels)
        np.testing.assert_array_equal(
            painted, pipeline.generate(replace(plain, loras=(ChosenLora("oil", 0.5),))).pixels
        )
    np.testing.assert_array_equal(before, after)
    assert not np.array_equal(before, painted)


def test_an_unknown_name_is_the_callers_mistake(server: Server) -> None:
    answer = server.generate(PROMPT, lora="ink")
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["message"]) == ("lora", "lora: 'ink' is not served here; known are gone, oil")


def test_several_in_one_request(server: Server) -> None:
    fields = {"size": "64x64", "seed": 7, "num_inference_steps": 2}
    one = made(server.generate(PROMPT, **fields, lora="oil", lora_scale=0.5))
    listed = made(server.generate(PROMPT, **fields, loras=[{"name": "oil", "scale": 0.5}]))
    np.testing.assert_array_equal(one, listed)


def test_one_that_cannot_be_had_is_refused_with_its_reason(server: Server) -> None:
    answer = server.generate(PROMPT, lora="gone")
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == "lora"
    assert error["message"].startswith("lora: 'gone' cannot be used: lora gone: /")
    assert error["message"].endswith("gone.safetensors: no such file or folder")
