"""Videos over HTTP, asked for with OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import httpx
import openai
import pytest

from benchmarks.pictures import noise, png
from benchmarks.server import Server, serve
from lightx2v.config import EngineSettings
from lightx2v.media.video import encode_video
from lightx2v.pipeline import Pipeline
from lightx2v.types import GenerateRequest, Size, Video
from tests.checkpoints.wan import write_wan

PROMPT = "a red circle left of a blue square"
SIZE = Size(64, 48)
SHORT: dict[str, Any] = {"num_frames": 9, "num_inference_steps": 4}
LONG: dict[str, Any] = {"num_frames": 81, "num_inference_steps": 100}
MAX_QUEUE = 2

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def server(wan: Path) -> Iterator[Server]:
    arguments = {"model": str(wan), "name": "wan", "dtype": "float32", "max_replicas": 1, "max_queue": MAX_QUEUE}
    with serve(arguments) as running:
        yield running


@pytest.fixture(scope="module")
def videos(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client.videos


@pytest.fixture(autouse=True)
def _nothing_runs_between_tests(server: Server) -> Iterator[None]:
    yield
    server.rest()


def denoises(server: Server) -> bool:
    return any(stage["running"] for stage in server.stages("denoise"))


def frames(data: bytes) -> list[tuple[int, int]]:
    with av.open(BytesIO(data)) as container:
        return [(frame.width, frame.height) for frame in container.decode(video=0)]


def test_a_video_is_what_the_engine_makes(videos: Any, server: Server, wan: Path) -> None:
    """Half a second is the nearest one more than a multiple of four frames."""
    extra = {"seed": 7, "num_inference_steps": 4, "guidance_scale": 3.5, "negative_prompt": "blurry"}
    video = videos.create_and_poll(
        model="wan", prompt=PROMPT, seconds="0.5", size=str(SIZE), extra_body=extra, poll_interval_ms=50
    )
    assert (video.object, video.status, video.progress, video.error) == ("video", "completed", 100, None)
    assert (video.model, video.prompt, video.size, video.seconds) == ("wan", PROMPT, str(SIZE), "0.5")
    queue = {"queue_position": None, "predicted_seconds": None}
    assert video.model_extra == {"seed": 7, "num_frames": 9, "warnings": [], **queue}
    assert video.created_at <= video.completed_at < video.expires_at
    pipeline = Pipeline(EngineSettings(model=str(wan), dtype="float32", device="cpu"))
    made = pipeline.generate(GenerateRequest("", PROMPT, SIZE, 4, 7, 3.5, negative_prompt="blurry", frames=9))
    assert isinstance(made, Video)
    content = videos.download_content(video.id)
    assert content.response.headers["content-type"] == "video/mp4"
    assert content.read() == encode_video(made)
    assert frames(content.read()) == [(SIZE.width, SIZE.height)] * 9


def test_json_makes_the_same_as_a_form(videos: Any, server: Server) -> None:
    fields = {"model": "wan", "prompt": PROMPT, "seed": 3, **SHORT}
    posted = server.http.post("/v1/videos", json=fields).json()
    asked = videos.create(model="wan", prompt=PROMPT, extra_body={"seed": 3, **SHORT})
    contents = [
        videos.download_content(videos.poll(id, poll_interval_ms=50).id).read() for id in (posted["id"], asked.id)
    ]
    assert contents[0] == contents[1]


def test_progress_is_by_step(videos: Any, server: Server) -> None:
    video = videos.create(model="wan", prompt=PROMPT, extra_body={"num_frames": 9, "num_inference_steps": 100})
    assert (video.status, video.progress, video.completed_at) == ("queued", 0, None)
    with pytest.raises(openai.ConflictError) as early:
        videos.download_content(video.id)
    assert early.value.code == "video_not_ready"
    seen = [video]
    while seen[-1].status in ("queued", "in_progress"):
        seen.append(videos.retrieve(video.id))
    percents = [one.progress for one in seen]
    assert percents == sorted(percents)
    assert any(0 < one.progress < 100 and one.status == "in_progress" for one in seen)
    assert [one.status for one in seen if one.progress == 100] == ["completed"]


@pytest.mark.parametrize("way", ["cancel", "delete"])
def test_a_running_job_ends_when_it_is_told(videos: Any, server: Server, way: str) -> None:
    """Also one that waits behind it; the next is made."""
    running, waiting = (videos.create(model="wan", prompt=PROMPT, extra_body=LONG) for _ in range(2))
    server.wait_until(lambda: denoises(server) and server.card()["waiting"] == 0, what="a running denoise")
    for video in (waiting, running):
        if way == "delete":
            assert videos.delete(video.id).deleted
            with pytest.raises(openai.NotFoundError):
                videos.retrieve(video.id)
        else:
            answer = server.http.post(f"/v1/videos/{video.id}/cancel").json()
            assert (answer["status"], answer["error"]["code"]) == ("failed", "cancelled")
            assert videos.retrieve(video.id).to_dict() == answer
            with pytest.raises(openai.NotFoundError):
                videos.download_content(video.id)
    server.rest()
    following = videos.create_and_poll(model="wan", prompt=PROMPT, extra_body=SHORT, poll_interval_ms=50)
    assert following.status == "completed"


def test_a_finished_job_stays_as_it_is_until_it_is_deleted(videos: Any, server: Server) -> None:
    video = videos.create_and_poll(model="wan", prompt=PROMPT, extra_body=SHORT, poll_interval_ms=50)
    assert server.http.post(f"/v1/videos/{video.id}/cancel").json() == video.to_dict()
    assert videos.delete(video.id).to_dict() == {"id": video.id, "object": "video.deleted", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        videos.download_content(video.id)


def test_a_job_has_its_place_in_the_queue_until_it_ends(videos: Any, server: Server) -> None:
    jobs = [videos.create(model="wan", prompt=PROMPT, extra_body=LONG) for _ in range(MAX_QUEUE)]
    with pytest.raises(openai.InternalServerError) as full:
        videos.create(model="wan", prompt=PROMPT)
    assert (full.value.status_code, full.value.code) == (503, "queue_full")
    assert int(full.value.response.headers["retry-after"]) >= 1
    videos.delete(jobs[0].id)
    jobs.append(videos.create(model="wan", prompt=PROMPT, extra_body=LONG))
    for job in jobs[1:]:
        videos.delete(job.id)


def refused(answer: httpx.Response, param: str | None, status: int, code: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), answer.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"num_frames": 10}, "num_frames"),
        ({"num_frames": 165}, "num_frames"),
        ({"num_frames": 161, "size": "1024x1024"}, "num_frames"),
        ({"num_frames": 1}, "num_frames"),
        ({"seconds": "12"}, "seconds"),
        ({"seconds": 4, "num_frames": 65}, "seconds"),
        ({"input_reference": {"image_url": "data:,"}}, "input_reference"),
        ({"frames": 9}, "frames"),
    ],
)
def test_what_cannot_be_made_is_refused(server: Server, fields: dict[str, Any], param: str) -> None:
    refused(server.http.post("/v1/videos", json={"prompt": PROMPT, **fields}), param, 400, "invalid_request")


def test_a_picture_for_a_model_that_takes_none_is_refused(videos: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        videos.create(model="wan", prompt=PROMPT, input_reference=("a.png", png(noise(SIZE)), "image/png"))
    assert caught.value.param == "input_reference"


def test_what_is_not_there(server: Server) -> None:
    refused(server.http.post("/v1/videos", json={"prompt": PROMPT, "model": "x"}), None, 404, "model_not_found")
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/content")):
        refused(server.http.request(method, f"/v1/videos/video_0{path}"), None, 404, "video_not_found")
    refused(server.http.get("/v1/videos/video_0/content?variant=thumbnail"), "variant", 400, "invalid_request")
    refused(server.http.get("/v1/videos"), None, 405, "method_not_allowed")
