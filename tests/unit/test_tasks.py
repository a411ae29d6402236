"""LightX2V's task API before stages that are doubles."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.pictures import noise, png
from deployments.http import job_runner
from lightx2v.types import Picture, Size
from tests.unit.handles import Handle, Remote, front, handles, served

CIRCLE = {"prompt": "a circle", "seed": 7}
PICTURE = png(noise(Size(96, 64)))
BASE64 = base64.b64encode(PICTURE).decode()
WHITE = png(Picture(np.full((64, 96, 3), 255, np.uint8)))

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(_: str) -> None:
        """There is no card to ask."""

    monkeypatch.setattr(job_runner, "progress_of", nobody)


@pytest.fixture
def stages() -> Any:
    return handles()


@pytest.fixture
async def http(checkpoint: Path, stages: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with front(served(checkpoint, stages, name="klein", max_queue=2)) as client:
        yield client


async def forever(*_: Any, **__: Any) -> None:
    await asyncio.Event().wait()


async def create(http: httpx.AsyncClient, path: str = "image/", **fields: Any) -> str:
    answer = (await http.post(f"/v1/tasks/{path}", json={**CIRCLE, **fields})).json()
    assert (answer["task_status"], answer["save_result_path"]) == ("pending", None), answer
    return str(answer["task_id"])


async def status(http: httpx.AsyncClient, task: str) -> dict[str, Any]:
    return dict((await http.get(f"/v1/tasks/{task}/status")).json())


async def ended(http: httpx.AsyncClient, task: str) -> dict[str, Any]:
    while (state := await status(http, task))["status"] in ("pending", "processing"):
        await asyncio.sleep(0.001)
    return state


def refused(answer: httpx.Response, status: int, code: str, message: str = "") -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert message in error["message"]


@pytest.mark.parametrize("path", ["image/", "image"])
async def test_a_task_is_the_picture_of_the_other_route(http: httpx.AsyncClient, path: str) -> None:
    task = await create(http, path)
    state = await ended(http, task)
    assert (state["status"], state["progress"], state["seed"], state["error"]) == ("completed", 100, 7, None)
    assert state["start_time"] <= state["end_time"]
    assert (await http.delete(f"/v1/tasks/{task}")).json()["stop_status"] == "do_nothing"
    result = await http.get(f"/v1/tasks/{task}/result")
    made = (await http.post("/v1/images/generations", json=CIRCLE)).json()["data"][0]
    assert (result.headers["content-type"], base64.b64encode(result.content).decode()) == (
        "image/png",
        made["b64_json"],
    )
    assert f'filename="{task}.png"' in result.headers["content-disposition"]
    sync = await http.post("/v1/tasks/image/sync?timeout_seconds=20&poll_interval_seconds=0.5", json=CIRCLE)
    assert (sync.headers["content-type"], sync.content) == ("image/png", result.content)


async def test_no_picture_may_be_an_empty_text(http: httpx.AsyncClient, stages: Any) -> None:
    assert (await ended(http, await create(http, image_path="")))["status"] == "completed"
    assert stages["denoise"].calls[-1][1].references == ()


@pytest.mark.parametrize("image", [BASE64, f"data:image/png;base64,{BASE64}", [BASE64], "file"])
async def test_a_picture_comes_in_base64_or_as_a_file(http: httpx.AsyncClient, stages: Any, image: Any) -> None:
    if image == "file":
        files = {"image_file": ("a.png", PICTURE, "image/png")}
        fields = {"prompt": "a circle", "seed": "7", "target_shape": "[32, 48]"}
        task = (await http.post("/v1/tasks/image/form", data=fields, files=files)).json()["task_id"]
    else:
        task = await create(http, image_path=image, target_shape=[32, 48])
    assert (await ended(http, task))["status"] == "completed"
    request = stages["denoise"].calls[-1][1]
    assert (request.references, request.size) == ((Size(96, 64),), Size(48, 32))


@pytest.mark.parametrize("is_form", [False, True])
async def test_a_mask_comes_as_the_pictures_do(http: httpx.AsyncClient, stages: Any, is_form: bool) -> None:
    if is_form:
        files = {"image_file": ("a.png", PICTURE), "image_mask_path": ("m.png", WHITE)}
        answer = await http.post("/v1/tasks/image/form", data={"prompt": "a circle"}, files=files)
        task = answer.json()["task_id"]
    else:
        task = await create(http, image_path=BASE64, image_mask_path=base64.b64encode(WHITE).decode())
    assert (await ended(http, task))["status"] == "completed"
    request = stages["denoise"].calls[-1][1]
    assert (request.is_masked, request.strength, request.size) == (True, 1.0, Size(96, 64))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("https://example.com/a.png", "image_path: image URLs are not fetched"),
        ("assets/a.png", "image_path: must be a data URL in base64"),
        ("/etc/passwd", "not a readable"),
        ([BASE64] * 9, "image_path: at most 8 pictures"),
    ],
    ids=["url", "path", "path of letters", "many"],
)
async def test_urls_and_paths_are_not_opened(http: httpx.AsyncClient, path: object, message: str) -> None:
    answer = await http.post("/v1/tasks/image/", json={**CIRCLE, "image_path": path})
    refused(answer, 400, "invalid_request", message)


async def test_what_is_ignored_is_in_the_answer(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/v1/tasks/image/", json={**CIRCLE, "save_result_path": "a.png"})).json()
    assert [warning.partition(" ")[0] for warning in answer["warnings"]] == ["save_result_path"]
    sync = await http.post("/v1/tasks/image/sync", json={**CIRCLE, "save_result_path": "a.png"})
    assert (sync.headers["x-seed"], sync.headers["x-warnings"]) == ("7", answer["warnings"][0])
    assert "x-warnings" not in (await http.post("/v1/tasks/image/sync", json=CIRCLE)).headers


async def test_a_cancelled_task_stays_known_and_gives_up_its_place(http: httpx.AsyncClient, stages: Any) -> None:
    stages["denoise"].call = Remote(forever)
    tasks = [await create(http) for _ in range(2)]
    refused(await http.post("/v1/tasks/image/", json=CIRCLE), 503, "queue_full")
    queue = (await http.get("/v1/tasks/queue/status")).json()
    assert (queue["is_processing"], queue["pending_count"], queue["queue_available"]) == (True, 2, 0)
    refused(await http.get(f"/v1/tasks/{tasks[0]}/result"), 404, "task_not_ready")
    for task, stop in ((tasks[0], "success"), (tasks[0], "success"), ("task_0", "do_nothing")):
        assert (await http.delete(f"/v1/tasks/{task}")).json()["stop_status"] == stop
    state = await status(http, tasks[0])
    assert (state["status"], state["error"], state["error_type"]) == (
        "cancelled",
        "the task was cancelled",
        "cancelled",
    )
    refused(await http.get(f"/v1/tasks/{tasks[0]}/result"), 404, "task_not_found", "cancelled")
    service = (await http.get("/v1/service/status")).json()
    assert (service["service_status"], service["total_tasks"], service["pending_tasks"]) == ("busy", 2, 1)
    assert (await http.get("/v1/tasks/queue/status")).json()["queue_available"] == 1


async def test_a_failed_task_tells_why(http: httpx.AsyncClient, stages: dict[Any, Handle]) -> None:
    stages["denoise"].fails = [OSError("/secret")] * 9
    state = await ended(http, await create(http))
    assert (state["status"], state["error_type"]) == ("failed", "internal_error")
    assert "/secret" not in state["error"]
    assert (await http.get("/v1/service/status")).json()["failed_tasks"] == 1


async def test_a_sync_task_that_takes_too_long_ends(http: httpx.AsyncClient, stages: Any) -> None:
    stages["denoise"].call = Remote(forever)
    refused(await http.post("/v1/tasks/image/sync?timeout_seconds=0.05", json=CIRCLE), 504, "deadline_exceeded")
    assert (await http.get("/v1/service/status")).json()["total_tasks"] == 0
    assert (await http.get("/v1/tasks/queue/status")).json()["queue_available"] == 2


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
async def test_a_timeout_is_a_number(http: httpx.AsyncClient, seconds: str) -> None:
    answer = await http.post(f"/v1/tasks/image/sync?timeout_seconds={seconds}", json=CIRCLE)
    refused(answer, 400, "invalid_request", "timeout_seconds")


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/"), ("DELETE", "/all/running")])
async def test_nobody_sees_or_ends_the_tasks_of_others(http: httpx.AsyncClient, method: str, path: str) -> None:
    task = await create(http)
    answer = await http.request(method, f"/v1/tasks{path}")
    refused(answer, 403, "tasks_not_listed", "neither listed nor cancelled")
    for path in ("/v1/tasks/queue/status", "/v1/service/status"):
        assert task not in (await http.get(path)).text


async def test_a_task_is_no_video_and_a_video_no_task(http: httpx.AsyncClient) -> None:
    task = await create(http)
    refused(await http.get(f"/v1/videos/{task}"), 404, "video_not_found")
    refused(await http.get("/v1/tasks/video_0/status"), 404, "task_not_found")
    refused(await http.get("/v1/tasks/video_0/result"), 404, "task_not_found")


@pytest.mark.parametrize("path", ["/video/", "/video", "", "/"])
async def test_a_video_is_a_task_of_a_model_of_videos(wan: Path, path: str) -> None:
    async with front(served(wan, handles())) as http:
        fields = {**CIRCLE, "target_video_length": 9, "target_shape": [48, 64]}
        task = (await http.post(f"/v1/tasks{path}", json=fields)).json()["task_id"]
        assert (await ended(http, task))["status"] == "completed"
        result = await http.get(f"/v1/tasks/{task}/result")
        assert result.headers["content-type"] == "video/mp4"
