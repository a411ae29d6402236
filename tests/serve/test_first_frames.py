"""Videos of a picture over HTTP: what each part of a model makes of it reaches the next, in another process."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from benchmarks.pictures import asked, noise, png
from benchmarks.server import Server, serve
from lightx2v.config import EngineSettings
from lightx2v.media.video import encode_video
from lightx2v.models.reference_image import make_reference
from lightx2v.models.wan.spec import read_spec
from lightx2v.pipeline import Pipeline
from lightx2v.types import Size, Video
from tests.checkpoints.wan import write_wan_clip, write_wan_i2v, write_wan_ti2v

PROMPT = "a red circle left of a blue square"
FIRST = noise(Size(120, 80))
SIZE = Size(64, 32)
"""Of a video of it: about as many pixels as by default, in its aspect."""

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "clip": write_wan_clip(tmp_path_factory.mktemp("clip")),
        "experts": write_wan_i2v(tmp_path_factory.mktemp("experts"), experts=2),
        "first-frame": write_wan_ti2v(tmp_path_factory.mktemp("first-frame")),
    }


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[Server]:
    models = [{"model": str(folder), "name": name} for name, folder in folders.items()]
    with serve({"models": models, "dtype": "float32", "max_replicas": 1}) as running:
        yield running


@pytest.fixture(scope="module")
def videos(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client.videos


@pytest.mark.parametrize("model", ["clip", "experts", "first-frame"])
def test_a_video_of_a_picture_is_what_the_engine_makes(videos: Any, folders: dict[str, Path], model: str) -> None:
    video = videos.create_and_poll(
        model=model,
        prompt=PROMPT,
        input_reference=("first.png", png(FIRST), "image/png"),
        extra_body={"seed": 7, "num_frames": 9, "num_inference_steps": 4, "guidance_scale": 3.5},
        poll_interval_ms=50,
    )
    assert (video.status, video.size, video.error) == ("completed", str(SIZE), None)
    reference = make_reference(Image.fromarray(FIRST.pixels), read_spec(folders[model]))
    request = asked(PROMPT, SIZE, 7, references=(reference.fitted.size,))
    request = replace(request, guidance=3.5, refine_guidance=3.5, frames=9)
    with closing(Pipeline(EngineSettings(model=str(folders[model]), dtype="float32", device="cpu"))) as pipeline:
        made = pipeline.generate(request, [reference])
    assert isinstance(made, Video)
    assert videos.download_content(video.id).read() == encode_video(made)


def test_a_picture_in_json_is_that_of_a_file(videos: Any, server: Server) -> None:
    """Also with the fields that other clients send along."""
    fields = {"model": "clip", "prompt": PROMPT, "seed": 3, "num_frames": 5, "steps": 1}
    encoded = f"data:image/png;base64,{base64.b64encode(png(FIRST)).decode()}"
    others = {"n": 1, "fps": 16, "user": "me", "quality": "high", "metadata": {}, "stream": False}
    posted = server.http.post("/v1/videos", json={**fields, **others, "input_reference": {"image_url": encoded}})
    assert posted.status_code == 200, posted.text
    file = videos.create(prompt=PROMPT, input_reference=png(FIRST), extra_body=fields)
    url = videos.create(prompt=PROMPT, extra_body={**fields, "input_reference": {"image_url": encoded}})
    ids = [videos.poll(id, poll_interval_ms=50).id for id in (posted.json()["id"], file.id, url.id)]
    first, *rest = [videos.download_content(id).read() for id in ids]
    assert rest == [first] * 2


@pytest.mark.parametrize("model", ["clip", "experts"])
def test_a_model_that_needs_a_picture_says_so(videos: Any, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="needs") as caught:
        videos.create(model=model, prompt=PROMPT)
    assert caught.value.param == "input_reference"
