"""The images API of a real server, through curl's eyes and the openai client's."""

from __future__ import annotations

import base64
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

import httpx
import numpy as np
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

from benchmarks.pictures import asked, made, noise, png
from benchmarks.server import Server
from lightx2v.pipeline import Pipeline
from lightx2v.types import Mask, Reference, Size

PROMPT = "a red circle left of a blue square on white"


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_text_to_image_is_the_pipelines_picture(server: Server, pipeline: Pipeline) -> None:
    answer = server.generate(PROMPT, size="96x64", seed=7, num_inference_steps=3)
    assert answer.status_code == 200
    expected = pipeline.generate(asked(PROMPT, Size(96, 64), 7, steps=3))
    np.testing.assert_array_equal(made(answer), expected.pixels)


def test_two_references_of_different_sizes(server: Server, pipeline: Pipeline) -> None:
    pictures = [noise(Size(96, 64), 1), noise(Size(64, 80), 2)]
    answer = server.edit([png(picture) for picture in pictures], PROMPT, seed="3")
    assert answer.status_code == 200
    sizes = tuple(picture.size for picture in pictures)
    expected = pipeline.generate(asked(PROMPT, sizes[0], 3, references=sizes), [Reference(one) for one in pictures])
    assert answer.json()["size"] == "96x64"
    np.testing.assert_array_equal(made(answer), expected.pixels)


def test_seeds(server: Server) -> None:
    """The same seed, the same picture; n pictures have consecutive seeds; a drawn seed is told and can be reused."""
    several = server.generate(PROMPT, seed=5, n=2).json()["data"]
    alone = server.generate(PROMPT, seed=6).json()["data"][0]
    assert [item["seed"] for item in several] == [5, 6]
    assert several[1] == alone != several[0]
    drawn = server.generate(PROMPT).json()["data"][0]
    assert server.generate(PROMPT, seed=drawn["seed"]).json()["data"][0] == drawn


def test_a_prompt_that_comes_again_is_not_encoded_again(server: Server) -> None:
    """No memory is leased for it, and the picture is the same."""

    def grants() -> int:
        return int(server.card()["grants_total"])

    before = grants()
    first = server.generate("an orange star", seed=5).json()["data"]
    between = grants()
    assert server.generate("an orange star", seed=5).json()["data"] == first
    assert (between - before, grants() - between) == (3, 2)


def test_concurrent_requests_do_not_mix(server: Server, pipeline: Pipeline) -> None:
    prompts = [f"{count} green triangles" for count in range(6)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda item: server.generate(item[1], seed=item[0]), enumerate(prompts)))
    for seed, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        expected = pipeline.generate(asked(prompt, Size(64, 64), seed))
        np.testing.assert_array_equal(made(answer), expected.pixels)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_output_formats(server: Server, output_format: str) -> None:
    (item,) = server.generate(PROMPT, output_format=output_format, response_format="url").json()["data"]
    assert item["url"].startswith(f"{server.url}/v1/files/picture_")
    file = httpx.get(item["url"])
    assert file.headers["content-type"] == f"image/{output_format}"
    picture = Image.open(BytesIO(file.content))
    assert (picture.format, picture.size) == (output_format.upper(), (64, 64))


def test_openai_client_generates(client: OpenAI) -> None:
    answer = client.images.generate(model="klein", prompt=PROMPT, size="1024x1024", n=1, extra_body={
        "size": "64x96", "seed": 1, "num_inference_steps": 2
    })  # fmt: skip
    assert answer.data is not None
    picture = Image.open(BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    assert picture.size == (64, 96)


def test_openai_client_edits_several_images(client: OpenAI) -> None:
    images = [("a.png", png(noise(Size(64, 64), seed))) for seed in range(2)]
    answer = client.images.edit(model="klein", image=images, prompt=PROMPT, extra_body={"seed": 1})
    assert answer.data is not None
    assert len(answer.data) == 1


def test_openai_client_edits_a_part(client: OpenAI, server: Server, pipeline: Pipeline) -> None:
    """The pipeline's pictures, each with its own seed, with the picture's own pixels outside of the mask. A request
    without a mask is as it was before."""
    picture, other, opaque = noise(Size(80, 64), 1), noise(Size(64, 64), 2), np.full((64, 80), 255, np.uint8)
    whole = made(server.edit([png(picture)], PROMPT, seed="1"))
    opaque[8:32, 16:60] = 0
    mask = Image.fromarray(np.dstack((picture.pixels, opaque)))
    answer = client.images.edit(
        model="klein",
        image=[("a.png", png(picture)), ("b.png", png(other))],
        mask=("mask.png", to_png(mask)),
        prompt=PROMPT,
        n=2,
        extra_body={"seed": 1, "strength": 0.8},
    )
    references = [Reference(picture, mask=Mask(opaque == 0)), Reference(other)]
    for seed, item in enumerate(answer.data or (), start=1):
        pixels = np.asarray(Image.open(BytesIO(base64.b64decode(item.b64_json or ""))))
        request = asked(PROMPT, picture.size, seed, references=(picture.size, other.size))
        expected = pipeline.generate(replace(request, is_masked=True, strength=0.8), references)
        np.testing.assert_array_equal(pixels, expected.pixels)
        np.testing.assert_array_equal(pixels[opaque > 0], picture.pixels[opaque > 0])
    assert seed == 2
    np.testing.assert_array_equal(made(server.edit([png(picture)], PROMPT, seed="1")), whole)


def test_openai_client_sees_what_is_wrong_with_a_mask(client: OpenAI) -> None:
    image = ("a.png", png(noise(Size(64, 64), 1)))
    black = {size: to_png(Image.new("L", (size, 64))) for size in (64, 48)}
    masks = {"size": black[48], "keeps": black[64], "readable": b"nothing", "black and white": image[1]}
    for words, mask in masks.items():
        with pytest.raises(BadRequestError, match=words) as bad:
            client.images.edit(model="klein", image=image, mask=("m.png", mask), prompt=PROMPT)
        assert bad.value.param == "mask"
    white = ("m.png", to_png(Image.new("L", (64, 64), 255)))
    with pytest.raises(BadRequestError, match="the first picture, 64x64") as bad:
        client.images.edit(model="klein", image=image, mask=white, prompt=PROMPT, size="1024x1024")
    assert bad.value.param == "size"


def to_png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_openai_client_downloads_a_url(client: OpenAI, server: Server) -> None:
    answer = client.images.generate(model="gpt-image-1", prompt=PROMPT, response_format="url", extra_body={"seed": 1})
    assert answer.data is not None
    (expected,) = server.generate(PROMPT, seed=1).json()["data"]
    assert httpx.get(answer.data[0].url or "").content == base64.b64decode(expected["b64_json"])


def test_a_long_prompt_is_told_of(server: Server, client: OpenAI) -> None:
    """The words behind the cut change nothing, and the answer says so."""
    long = "a red circle " * 300
    answers = [server.generate(f"{long}{last}", seed=1) for last in ("above", "below")]
    assert answers[0].json()["data"] == answers[1].json()["data"]
    assert re.fullmatch(r"512 of [0-9]+ tokens are read", answers[0].headers["X-Prompt-Truncated"])
    raw = client.images.with_raw_response.generate(prompt=PROMPT, extra_body={"negative_prompt": "blue"})
    assert "X-Negative-Prompt-Ignored" in raw.headers
    assert "X-Prompt-Truncated" not in raw.headers


def test_an_allowed_page_may_ask(server: Server) -> None:
    """Through Serve's proxy."""
    page = {"Origin": "https://example.com"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    preflight = httpx.options(f"{server.url}/v1/images/generations", headers=page | asked)
    listed = httpx.get(f"{server.url}/v1/models", headers=page)
    assert (preflight.status_code, listed.status_code) == (200, 200)
    for answer in (preflight, listed):
        assert answer.headers["access-control-allow-origin"] == "https://example.com"


def test_an_edit_in_json_is_that_of_a_form(server: Server, client: OpenAI) -> None:
    """Also one that openai's client sends with an empty mask, and with fields as other clients call them."""
    files = [png(noise(Size(64, 64), seed)) for seed in range(2)]
    urls = [{"image_url": f"data:image/png;base64,{base64.b64encode(data).decode()}"} for data in files]
    body = {"prompt": PROMPT, "images": urls, "seed": "1", "steps": 2.0, "model": "klein"}
    from_json = server.http.post("/v1/images/edits", json=body)
    assert from_json.status_code == 200, from_json.text
    extra = {"seed": 1, "steps": 2, "stream": False, "negative_prompt": ""}
    answer = client.images.edit(model="klein", image=files, mask=b"", prompt=PROMPT, extra_body=extra)
    assert answer.data is not None
    assert answer.data[0].b64_json == from_json.json()["data"][0]["b64_json"]


def test_openai_client_lists_and_finds_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["klein", "gpt-image-1"]
    assert client.models.retrieve("klein") == next(iter(client.models.list()))
    with pytest.raises(NotFoundError) as not_found:
        client.models.retrieve("owner/another")
    assert not_found.value.code == "model_not_found"


def test_openai_client_is_told_what_is_not_made(client: OpenAI) -> None:
    file = png(noise(Size(64, 64)))
    with pytest.raises(BadRequestError, match="transparent") as background:
        client.images.generate(prompt=PROMPT, background="transparent")
    with pytest.raises(BadRequestError, match="not streamed") as stream:
        client.images.generate(prompt=PROMPT, stream=True)
    with pytest.raises(BadRequestError, match="nearest that can be made is 1920x1072") as size:
        client.images.generate(prompt=PROMPT, size="1920x1080")
    with pytest.raises(BadRequestError) as markup:
        client.images.edit(prompt=PROMPT, image=file, markup=file)
    assert [error.value.param for error in (background, stream, size, markup)] == [
        "background", "stream", "size", "markup"
    ]  # fmt: skip


def test_openai_client_sees_typed_errors(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as not_found:
        client.images.generate(model="another", prompt=PROMPT)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as bad:
        client.images.generate(model="klein", prompt="")
    assert (bad.value.code, bad.value.param) == ("invalid_request", "prompt")


def test_residency_reports_the_card(server: Server) -> None:
    server.generate(PROMPT)
    card = server.rest()
    assert card["granted_bytes"] <= card["peak_granted_bytes"] <= card["budget_bytes"]
    assert {stage["stage"] for stage in card["stages"]} == {"encode", "denoise", "decode"}
    assert all(stage["resident_bytes"] == stage["reachable_bytes"] > 0 for stage in card["stages"])
    assert card["h2d_bytes_total"] >= sum(stage["reachable_bytes"] for stage in card["stages"])
    assert card["d2h_bytes_total"] == 0


def test_a_full_queue_refuses_at_once(server: Server) -> None:
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda seed: server.generate(PROMPT, seed=seed), range(24)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert {answer.status_code for answer in answers} == {200, 503}
    for answer in refused:
        assert answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["Retry-After"]) >= 1
    assert server.generate(PROMPT).status_code == 200
