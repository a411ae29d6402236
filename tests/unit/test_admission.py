"""The door of the HTTP side: who is refused, who goes first, and what callers are told of the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.pictures import noise, png
from deployments.http import ingress, job_runner
from deployments.messages import Terms
from deployments.serving import served_models
from deployments.serving.admission import Admission, Asker
from deployments.serving.deadline import Deadline
from lightx2v.errors import DeadlineExceeded, QueueFull
from lightx2v.media.picture import decode_picture
from lightx2v.residency.backlog import Backlog
from lightx2v.types import GenerateRequest, Size
from tests.unit.handles import Handle, Remote, front, handles, served

GENERATIONS = "/v1/images/generations"
CIRCLE = {"prompt": "a circle"}
CLIP = {"prompt": "a circle", "size": "64x48", "num_frames": 9}

pytestmark = pytest.mark.timeout(30)


class Gate:
    """A denoiser that waits: what came to it, and when it may go on."""

    def __init__(self, stages: Mapping[Any, Handle]) -> None:
        self.open, self.terms = asyncio.Event(), list[Terms]()
        self._plain = stages["denoise"]._call
        stages["denoise"].call = Remote(self._call)

    async def _call(self, method: str, request: GenerateRequest, terms: Terms, **inputs: Any) -> Any:
        self.terms.append(terms)
        await self.open.wait()
        return await self._plain(method, request, terms, **inputs)

    async def entered(self, count: int) -> None:
        while len(self.terms) < count:
            await asyncio.sleep(0.001)


@asynccontextmanager
async def asking(http: httpx.AsyncClient, gate: Gate, **fields: Any) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """A request that has come to the denoiser, until the body ends; then it is made."""
    before = len(gate.terms)
    task = asyncio.create_task(http.post(GENERATIONS, json=CIRCLE | fields))
    await gate.entered(before + 1)
    try:
        yield task
    finally:
        gate.open.set()
        assert (await task).status_code == 200


@pytest.fixture(autouse=True)
def _known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes 4 s, as if one had been made."""

    class Known(Backlog):
        def __init__(self, models: Any) -> None:
            super().__init__(models)
            for speed in self._speeds.values():
                speed.note_alone(4.0, 1.0)

    monkeypatch.setattr(served_models, "Backlog", Known)


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: str) -> None:
        """The request runs on no card."""

    async def cards() -> list[dict[str, Any]]:
        stage = {"model": "klein", "running": True}
        return [{"stages": [stage, {"model": "other", "running": True}, stage | {"running": False}]}]

    monkeypatch.setattr(job_runner, "progress_of", nothing)
    monkeypatch.setattr(ingress, "reports", cards)


def refused(answer: httpx.Response) -> str:
    """The message of a refusal that tells when to try again."""
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (503, "queue_full", "server_error")
    assert int(answer.headers["retry-after"]) >= 1
    return str(error["message"])


async def test_what_cannot_be_made_in_time_is_refused_at_the_door(checkpoint: Path) -> None:
    stages = handles()
    gate = Gate(stages)
    async with front(served(checkpoint, stages, request_timeout_seconds=10)) as http:
        async with asking(http, gate), asking(http, gate):
            answer = await http.post(GENERATIONS, json=CIRCLE)
            assert "behind 2 others it would be made in 13." in refused(answer)
            assert answer.headers["retry-after"] == "4"
            assert "and it has 10 s" in refused(await http.post(GENERATIONS, json=CIRCLE | {"n": 2}))
            small = CIRCLE | {"num_inference_steps": 1, "size": "16x16"}
            asked = asyncio.create_task(http.post(GENERATIONS, json=small))
            await gate.entered(3)
        assert (await asked).status_code == 200, "it is small enough"
        assert len(stages["encode"].calls) == 3


async def test_while_nothing_is_inside_one_is_always_admitted(checkpoint: Path) -> None:
    stages = handles()
    async with front(served(checkpoint, stages, request_timeout_seconds=2)) as http:
        assert (await http.post(GENERATIONS, json=CIRCLE)).status_code == 200


async def test_the_queue_still_bounds_the_number(checkpoint: Path) -> None:
    stages = handles()
    gate = Gate(stages)
    async with front(served(checkpoint, stages, max_queue=1)) as http, asking(http, gate):
        assert "1 requests are waiting already" in refused(await http.post(GENERATIONS, content=b"not read"))


async def test_pictures_are_decoded_only_of_who_is_admitted(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []

    def decode(data: bytes) -> Any:
        decoded.append(data)
        return decode_picture(data)

    monkeypatch.setattr(served_models, "decode_picture", decode)
    stages, files = handles(), {"image": png(noise(Size(64, 64)))}
    gate = Gate(stages)
    async with front(served(checkpoint, stages, request_timeout_seconds=6)) as http:
        async with asking(http, gate):
            refused(await http.post("/v1/images/edits", data=CIRCLE, files=files))
            assert decoded == []
        assert (await http.post("/v1/images/edits", data=CIRCLE, files=files)).status_code == 200
        assert len(decoded) == 1


async def test_no_more_uploads_are_read_than_requests_are_admitted(checkpoint: Path) -> None:
    reading, end = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        reading.set()
        await end.wait()
        yield b"}"

    headers = {"content-type": "application/json"}
    async with front(served(checkpoint, handles(), max_queue=1)) as http:
        first = asyncio.create_task(http.post("/v1/images/edits", content=slow(), headers=headers))
        await reading.wait()
        assert "being read" in refused(await http.post("/v1/images/edits", content=b"{}", headers=headers))
        assert (await http.post(GENERATIONS, json=CIRCLE)).status_code == 200
        end.set()
        assert (await first).status_code == 400
        assert (await http.post("/v1/images/edits", content=b"{}", headers=headers)).status_code == 400


async def test_priorities_and_turns_go_to_the_stages(checkpoint: Path) -> None:
    stages = handles()
    gate = Gate(stages)
    async with front(served(checkpoint, stages), max_priority=5) as http:
        async with asking(http, gate), asking(http, gate, priority="-10"), asking(http, gate, priority=5):
            http.headers["Authorization"] = "Bearer another"
            async with asking(http, gate):
                first, lowest, highest, other = gate.terms
        assert [terms.priority for terms in gate.terms] == [0, -10, 5, 0]
        assert first.turn < lowest.turn < highest.turn
        assert other.turn == first.turn, "another caller has had nothing yet"
        assert sorted(gate.terms, key=lambda terms: terms.order) == [highest, first, other, lowest]
        for priority in (6, 11, -11, 0.5, "high"):
            answer = await http.post(GENERATIONS, json=CIRCLE | {"priority": priority})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "priority")


async def test_a_higher_priority_is_admitted_where_a_lower_one_is_not(checkpoint: Path) -> None:
    stages = handles()
    gate = Gate(stages)
    async with (
        front(served(checkpoint, stages, request_timeout_seconds=10)) as http,
        asking(http, gate),
        asking(http, gate),
    ):
        refused(await http.post(GENERATIONS, json=CIRCLE))
        async with asking(http, gate, priority=1):
            refused(await http.post(GENERATIONS, json=CIRCLE | {"priority": 1}))


async def test_a_job_and_residency_tell_the_queue(wan: Path) -> None:
    stages = handles()
    gate = Gate(stages)
    async with front(served(wan, stages, name="klein")) as http:
        ids = [(await http.post("/v1/videos", json=CLIP)).json()["id"] for _ in range(3)]
        first, *_, last = [(await http.get(f"/v1/videos/{one}")).json() for one in ids]
        assert (first["queue_position"], last["queue_position"]) == (0, 2)
        assert 0 < first["predicted_seconds"] < last["predicted_seconds"]
        task = (await http.post("/v1/tasks/video/", json=CLIP)).json()["task_id"]
        status = (await http.get(f"/v1/tasks/{task}/status")).json()
        assert (status["queue_position"], status["predicted_seconds"] > last["predicted_seconds"]) == (3, True)
        queue = (await http.get("/v1/residency")).json()["queue"]["klein"]
        assert (queue["waiting"], queue["running"]) == (3, 1)
        assert queue["predicted_seconds"] == pytest.approx(status["predicted_seconds"], abs=0.5)
        gate.open.set()
        while (ended := (await http.get(f"/v1/videos/{ids[-1]}")).json())["status"] != "completed":
            await asyncio.sleep(0.001)
        assert (ended["queue_position"], ended["predicted_seconds"]) == (None, None)


async def test_who_could_not_begin_behind_others_may_try_again() -> None:
    """Alone it would fail again, so it hears that the deadline is the reason."""
    admission = Admission("a", 8, 60.0, Backlog(["a"]))
    with admission.admitted(Asker(), 1.0) as first, admission.admitted(Asker(), 1.0) as second:
        with pytest.raises(QueueFull, match="others went first"):
            async with second.making():
                raise DeadlineExceeded("too little time is left")
        assert (first.end, second.end) == ("left", "late")
    with pytest.raises(DeadlineExceeded), admission.admitted(Asker(), 1.0) as alone:
        async with alone.making():
            raise DeadlineExceeded("too little time is left")


async def test_nothing_is_answered_late() -> None:
    """Not even if the loop was too busy to notice."""

    async def keep_busy(deadline: Deadline) -> None:
        async with deadline.enforced():
            while deadline.left > -0.01:
                """The loop does not turn."""

    with pytest.raises(DeadlineExceeded, match="not made within"):
        await keep_busy(Deadline.after(0.01))
