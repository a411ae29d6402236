"""What had no effect is told in headers of pictures, and in the jobs of videos."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from ray.exceptions import RayActorError

from tests.unit.handles import front, handles, served

LONG = "a red circle " * 30
ROUTE = "/v1/images/generations"


async def test_a_long_prompt_is_told_of_and_logged(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with front(served(checkpoint, handles())) as http:
        with caplog.at_level(logging.WARNING, "deployments"):
            answer = await http.post(ROUTE, json={"prompt": LONG})
    assert answer.headers["X-Prompt-Truncated"] == "10 of 90 tokens are read"
    assert [record.levelname for record in caplog.records if "prompt_truncated" in record.message] == ["WARNING"]


async def test_a_short_prompt_costs_no_call(checkpoint: Path) -> None:
    stages = handles()
    async with front(served(checkpoint, stages)) as http:
        answer = await http.post(ROUTE, json={"prompt": "a red circle", "n": 2})
    assert [header for header in answer.headers if header.startswith("x-")] == []
    assert [method for method, *_ in stages["encode"].calls] == ["run"]


async def test_what_a_distilled_model_ignores_is_told(checkpoint: Path) -> None:
    asked = {"prompt": "a red circle", "negative_prompt": "blue", "guidance_scale": 7}
    async with front(served(checkpoint, handles())) as http:
        answer = await http.post(ROUTE, json=asked)
    assert answer.headers["X-Negative-Prompt-Ignored"] == "this model follows none"
    assert answer.headers["X-Guidance-Scale-Ignored"] == "this model is distilled and follows none"


async def test_a_stage_that_dies_is_asked_again(checkpoint: Path) -> None:
    stages = handles()
    stages["encode"].fails = [RayActorError()]
    async with front(served(checkpoint, stages)) as http:
        answer = await http.post(ROUTE, json={"prompt": LONG})
    assert answer.headers["X-Prompt-Truncated"] == "10 of 90 tokens are read"
    assert [method for method, *_ in stages["encode"].calls] == ["truncations"] * 2 + ["run"]


async def test_a_video_carries_its_warnings(wan: Path) -> None:
    clip = {"size": "64x48", "num_frames": 9, "guidance_scale": 1, "negative_prompt": "blue"}
    async with front(served(wan, handles())) as http:
        warned = (await http.post("/v1/videos", json=clip | {"prompt": LONG})).json()
        plain = (await http.post("/v1/videos", json={"prompt": "a red circle", "num_frames": 9})).json()
    assert warned["warnings"] == [
        "negative_prompt_ignored: guidance_scale 1 is no guidance",
        "prompt_truncated: 10 of 90 tokens are read",
    ]
    assert plain["warnings"] == []
