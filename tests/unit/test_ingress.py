"""The HTTP side before stages that are doubles: deadlines, bounds, health."""

from __future__ import annotations

import asyncio
import threading
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import DeploymentStatus

from benchmarks.pictures import noise, png
from deployments.http import ingress, job_runner
from deployments.serving import served_models
from lightx2v.errors import NonFinite, OutOfMemory
from lightx2v.types import Size
from tests.unit.handles import Remote, front, handles, served

SECONDS = 0.1
CIRCLE = {"prompt": "a circle"}
CLIP = {"prompt": "a circle", "size": "64x48", "num_frames": 9}

pytestmark = pytest.mark.timeout(30)


class Stuck:
    """A blocking function that does not return before the test ends, and how often it runs at a time."""

    def __init__(self) -> None:
        self.end, self.running, self.most = threading.Event(), 0, 0

    def __call__(self, *_: Any) -> bytes:
        self.running += 1
        self.most = max(self.most, self.running)
        self.end.wait()
        self.running -= 1
        return b"file"


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    one = Stuck()
    yield one
    one.end.set()


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def too_late(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_model_is_asked_for_by_its_aliases(checkpoint: Path, z_turbo: Path) -> None:
    one, two = handles(), handles()
    models = (
        served(checkpoint, one, name="klein", aliases=("gpt-image-1", "dall-e-3")),
        served(z_turbo, two, name="z", aliases=("dall-e-2",)),
    )
    async with front(*models) as http:
        for name in ("klein", "gpt-image-1", "dall-e-3", "z", "dall-e-2"):
            assert (await http.post("/v1/images/generations", json=CIRCLE | {"model": name})).status_code == 200
        missing = await http.post("/v1/images/generations", json=CIRCLE | {"model": "dall-e-4"})
        listed = (await http.get("/v1/models")).json()["data"]
    assert [len(stages["encode"].calls) for stages in (one, two)] == [3, 2]
    assert (missing.status_code, "dall-e-2" in missing.json()["error"]["message"]) == (404, True)
    assert [entry["id"] for entry in listed] == ["klein", "z", "gpt-image-1", "dall-e-3", "dall-e-2"]


async def test_encoding_an_answer_has_the_deadline_too(
    checkpoint: Path, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingress, "encode", stuck)
    async with front(served(checkpoint, handles(), request_timeout_seconds=SECONDS)) as http:
        too_late(await http.post("/v1/images/generations", json=CIRCLE))


@pytest.mark.parametrize("route", ["/v1/images/edits", "/v1/videos"])
async def test_reading_references_has_the_deadline_too(
    checkpoint: Path, wan_i2v: Path, stuck: Stuck, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    monkeypatch.setattr(served_models, "decode_picture", stuck)
    name, model = ("image", checkpoint) if "images" in route else ("input_reference", wan_i2v)
    async with front(served(model, handles(), request_timeout_seconds=SECONDS)) as http:
        too_late(await http.post(route, data=CIRCLE, files={name: png(noise(Size(64, 64)))}))


async def test_encoding_a_video_has_the_deadline_too(wan: Path, stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_runner, "encode", stuck)
    async with front(served(wan, handles(), request_timeout_seconds=SECONDS)) as http:
        job = (await http.post("/v1/videos", json=CLIP)).json()
        while job["status"] != "failed":
            await asyncio.sleep(0)  # to the loop's clock: nothing here waits for anything
            job = (await http.get(f"/v1/videos/{job['id']}")).json()
        assert job["error"]["code"] == "deadline_exceeded"


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(_: str) -> None:
        """The request runs on no card."""

    monkeypatch.setattr(job_runner, "progress_of", nobody)


async def test_one_video_is_encoded_at_a_time_whoever_is_deleted(
    wan: Path, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_runner, "encode", stuck)
    stages = handles()
    async with front(served(wan, stages)) as http:
        first = (await http.post("/v1/videos", json=CLIP)).json()
        await until(lambda: stuck.running)
        assert (await http.delete(f"/v1/videos/{first['id']}")).status_code == 200
        await http.post("/v1/videos", json=CLIP)
        await until(lambda: [method for method, *_ in stages["decode"].calls] == ["run"] * 2)
        await asyncio.to_thread(lambda: None)
        assert stuck.most == 1


async def test_two_references_are_decoded_at_a_time_whoever_hangs_up(
    checkpoint: Path, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_models, "decode_picture", stuck)
    files = [("image[]", png(noise(Size(64, 64))))] * 2
    async with front(served(checkpoint, handles())) as http:
        for _ in range(2):
            asking = asyncio.create_task(http.post("/v1/images/edits", data=CIRCLE, files=files))
            await until(lambda: stuck.running >= 2)
            asking.cancel()
            await asyncio.wait([asking])
        assert stuck.most == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [(NonFinite("NaN in the latents"), "NaN in the latents"), (RuntimeError("no compiler"), "no compiler")],
)
async def test_a_model_that_cannot_make_its_first_picture_is_not_healthy(
    checkpoint: Path, error: Exception, reason: str
) -> None:
    """Requests are still tried, and those of other models are not touched."""
    broken, sound = handles(), handles()
    broken["denoise"].fails = [error] * 2
    one, other = served(checkpoint, broken, True, name="broken"), served(checkpoint, sound, True, name="sound")
    async with front(one, other) as http:
        for _ in range(2):
            answer = await http.get("/health")
            assert (answer.status_code, answer.json()["status"]) == (503, "failed")
            assert "broken" in answer.json()["reason"]
            assert reason in answer.json()["reason"]
        for name in ("sound", "broken"):
            assert (await http.post("/v1/images/generations", json={**CIRCLE, "model": name})).status_code == 200


async def test_a_sound_model_is_healthy(checkpoint: Path) -> None:
    async with front(served(checkpoint, handles(), True)) as http:
        answer = await http.get("/health")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_a_stage_that_fails_leaves_no_question_to_others(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise OutOfMemory("a byte too many")

    async def wait() -> None:
        await asyncio.Event().wait()

    stages = handles()
    stages["decode"].ready, stages["encode"].ready = Remote(fail), Remote(wait)
    async with front(served(checkpoint, stages)) as http:
        answer = await http.get("/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "failed", "reason": "a byte too many"})
        assert all([await response.cancelled() for response in stages["encode"].ready.responses])


@pytest.mark.parametrize(("message", "reason"), [("", "Serve gives no reason"), ("Traceback\nNo such file", "No such")])
async def test_a_stage_that_was_given_up(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, message: str, reason: str
) -> None:
    async def gone() -> None:
        raise DeploymentUnavailableError(SimpleNamespace(name="encode", app_name="app"))

    deployment = SimpleNamespace(status=DeploymentStatus.DEPLOY_FAILED, message=message)
    application = SimpleNamespace(deployments={"encode": deployment})
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={"app": application}))
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="app"))
    stages = handles()
    stages["encode"].ready = Remote(gone)
    async with front(served(checkpoint, stages)) as http:
        answer = await http.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "failed")
        assert answer.json()["reason"].startswith(f"encode: {reason}")


async def test_a_model_has_names(checkpoint: Path, tmp_path: Path) -> None:
    """Its id and, if no other shares it, its hub id; both may be asked for by themselves."""
    snapshot = tmp_path / "models--owner--circles" / "snapshots" / "0a1b"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(checkpoint)
    hub_id = {"model": "owner/circles"}
    async with front(served(snapshot, handles())) as http:
        for name in ("circles", "owner/circles", "owner%2Fcircles"):
            entry = (await http.get(f"/v1/models/{name}")).json()
            assert entry == (await http.get("/v1/models")).json()["data"][0]
            assert entry["id"] == "circles"
        assert (await http.post("/v1/images/generations", json={**CIRCLE, **hub_id})).status_code == 200
        unknown = await http.get("/v1/models/owner/squares")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    async with front(*(served(snapshot, handles(), name=name) for name in ("one", "two"))) as http:
        assert (await http.post("/v1/images/generations", json={**CIRCLE, **hub_id})).status_code == 404


async def test_an_edit_in_json_is_that_of_a_form(checkpoint: Path) -> None:
    stages, picture = handles(), png(noise(Size(64, 64)))
    encoded = f"data:image/png;base64,{b64encode(picture).decode()}"
    async with front(served(checkpoint, stages)) as http:
        for body in (
            {"data": {**CIRCLE, "model": "", "seed": "1"}, "files": {"image": picture}},
            {"json": {**CIRCLE, "seed": 1, "image": encoded}},
        ):
            assert (await http.post("/v1/images/edits", **body)).status_code == 200
        form, from_json = (call for call in stages["decode"].calls if call[0] == "run")
        assert replace(form[1], id="") == replace(from_json[1], id="")
        for fields, param in (({"mask": encoded, "image": encoded}, "mask"), ({}, "image"), ({"image": ""}, "image")):
            refused = await http.post("/v1/images/edits", json={**CIRCLE, **fields})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_the_policy_of_sizes_is_the_models(checkpoint: Path) -> None:
    asked = {**CIRCLE, "size": "70x50"}
    async with front(served(checkpoint, handles(), size_policy="nearest")) as http:
        assert (await http.post("/v1/images/generations", json=asked)).json()["size"] == "64x48"
    async with front(served(checkpoint, handles())) as http:
        assert "nearest that can be made is 64x48" in (await http.post("/v1/images/generations", json=asked)).text
