"""LightX2V's task API of a real server, asked as its own scripts do."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from benchmarks.pictures import noise, png
from benchmarks.server import Server
from lightx2v.types import Size

PROMPT = "a red circle left of a blue square on white"
SCRIPT: dict[str, Any] = {
    "prompt": PROMPT,
    "negative_prompt": "",
    "infer_steps": 3,
    "seed": 7,
    "aspect_ratio": "16:9",
    "save_result_path": "./cat.png",
    "use_prompt_enhancer": False,
    "target_shape": [64, 96],
}
"""What LightX2V's example client sends."""
LONG: dict[str, Any] = {"prompt": PROMPT, "infer_steps": 100, "target_shape": [256, 256]}


def state(server: Server, task: str) -> dict[str, Any]:
    return dict(server.http.get(f"/v1/tasks/{task}/status").json())


def result(server: Server, fields: dict[str, Any]) -> httpx.Response:
    """The result of a task, once it is completed."""
    task = server.http.post("/v1/tasks/image/", json=fields).json()["task_id"]
    server.wait_until(lambda: state(server, task)["status"] == "completed", what="a completed task")
    return server.http.get(f"/v1/tasks/{task}/result")


def png_of(answer: httpx.Response) -> bytes:
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def test_a_task_is_the_picture_of_the_images_api(server: Server) -> None:
    expected = png_of(server.generate(PROMPT, size="96x64", seed=7, num_inference_steps=3))
    made = result(server, SCRIPT)
    assert (made.headers["content-type"], made.content) == ("image/png", expected)
    assert server.http.post("/v1/tasks/image/sync", json=SCRIPT).content == expected


def test_an_edit_is_the_picture_of_the_images_api(server: Server) -> None:
    pictures = [png(noise(Size(96, 64), 1)), png(noise(Size(64, 80), 2))]
    texts = [base64.b64encode(picture).decode() for picture in pictures]
    fields = {"prompt": PROMPT, "seed": 3, "image_path": [texts[0], f"data:image/png;base64,{texts[1]}"]}
    assert result(server, fields).content == png_of(server.edit(pictures, PROMPT, seed="3"))


def test_a_running_task_ends_when_it_is_cancelled(server: Server) -> None:
    tasks = [server.http.post("/v1/tasks/image/", json=LONG).json()["task_id"] for _ in range(2)]
    states = {"processing"}  # both take steps, in one cohort
    server.wait_until(lambda: {state(server, task)["status"] for task in tasks} == states, what="two running tasks")
    for task in reversed(tasks):
        assert server.http.delete(f"/v1/tasks/{task}").json()["stop_status"] == "success"
        assert state(server, task)["status"] == "cancelled"
        assert server.http.get(f"/v1/tasks/{task}/result").status_code == 404
    server.rest()
    assert result(server, SCRIPT).status_code == 200


def test_a_caller_who_hangs_up_ends_what_it_waits_for(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/tasks/image/sync", json=LONG, timeout=1.0)
    server.rest()
    server.wait_until(lambda: server.http.get("/v1/service/status").json()["service_status"] == "idle", what="idleness")
