"""Pictures that come with a request: read alike from a form and from JSON, whatever the client calls them."""

from __future__ import annotations

import json
import tracemalloc
from base64 import b64encode
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from starlette.requests import Request

from deployments.http.uploads import UploadNames, Uploads, read_uploads
from lightx2v.errors import InvalidRequest

LIMIT = 1 << 20
EDITS = UploadNames(("image", "images"), "mask")
VIDEOS = UploadNames(("input_reference",))
ONE, TWO = b"\x89PNG one \xff\x00", b"\x89PNG two \xfe"


def url(data: bytes, head: str = "data:image/png;base64,") -> str:
    return head + b64encode(data).decode()


async def read(sent: httpx.Request, names: UploadNames = EDITS) -> tuple[dict[str, Any], Uploads]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": sent.read(), "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [(key.lower(), value) for key, value in sent.headers.raw],
    }
    return await read_uploads(Request(scope, receive), LIMIT, names, 2)


async def from_json(names: UploadNames = EDITS, **values: Any) -> tuple[dict[str, Any], Uploads]:
    return await read(httpx.Request("POST", "http://a/", json=values), names)


async def from_form(
    files: list[tuple[str, Any]], names: UploadNames = EDITS, **fields: str
) -> tuple[dict[str, Any], Uploads]:
    parts = [*files, *((key, (None, value)) for key, value in fields.items())]
    return await read(httpx.Request("POST", "http://a/", files=parts), names)


VALUES: dict[str, dict[str, Any]] = {
    "a data URL": {"image": url(ONE)},
    "a list": {"image": [url(ONE)]},
    "another name": {"images": [url(ONE)]},
    "an object": {"images": [{"image_url": url(ONE)}]},
    "OpenAI's object": {"image": {"type": "image_url", "image_url": {"url": url(ONE)}}},
    "another media type": {"image": url(ONE, "data:application/octet-stream;charset=utf-8;base64,")},
    "capitals": {"image": url(ONE, "DATA:image/PNG;BASE64,")},
    "lines": {"image": "data:image/png;base64,\n" + "\r\n".join(b64encode(ONE).decode())},
    "no padding": {"image": url(ONE).rstrip("=")},
    "base64 alone": {"image": b64encode(ONE).decode()},
    "an empty mask": {"image": url(ONE), "mask": ""},
    "no mask": {"image": url(ONE), "mask": None},
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
async def test_json_has_a_picture(values: dict[str, Any]) -> None:
    assert await from_json(prompt="a cat", **values) == ({"prompt": "a cat"}, Uploads((ONE,)))


@pytest.mark.parametrize("name", ["image", "image[]", "image[0]", "images", "images[]", "images[3]"])
@pytest.mark.parametrize("filename", ["a.png", None])
async def test_a_form_has_a_picture(name: str, filename: str | None) -> None:
    assert await from_form([(name, (filename, ONE))], prompt="a cat") == ({"prompt": "a cat"}, Uploads((ONE,)))


@pytest.mark.parametrize(
    "name", ["image", "images[]", "image[image_url]", "images[0][image_url]", "image[image_url][url]"]
)
async def test_a_form_has_a_data_url(name: str) -> None:
    assert await from_form([(name, (None, url(ONE)))]) == ({}, Uploads((ONE,)))


async def test_several_are_in_order() -> None:
    several = Uploads((ONE, TWO))
    assert (await from_json(image=[url(ONE), {"image_url": url(TWO)}]))[1] == several
    assert (await from_form([("image[]", ONE), ("image[]", TWO)]))[1] == several
    assert (await from_form([("image[1]", TWO), ("image[0]", ONE)]))[1] == several
    assert (await from_form([("image", ONE), ("image[1]", url(TWO))]))[1] == several


async def test_a_mask_is_read_alike() -> None:
    masked = ({"prompt": "a"}, Uploads((ONE,), TWO))
    assert await from_json(prompt="a", image=url(ONE), mask=url(TWO)) == masked
    assert await from_json(prompt="a", image=url(ONE), mask={"image_url": url(TWO)}) == masked
    assert await from_form([("image", ONE), ("mask", TWO)], prompt="a") == masked
    assert await from_form([("image", ONE), ("mask", (None, url(TWO)))], prompt="a") == masked


@pytest.mark.parametrize("filename", ["m.png", "", None])
async def test_an_empty_mask_is_none(filename: str | None) -> None:
    assert await from_form([("image", ONE), ("mask", (filename, b""))]) == ({}, Uploads((ONE,)))


async def test_a_long_header_of_a_part_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="header size"):
        await from_form([("image", (";" * 10_000, ONE))])


async def test_whitespace_within_base64_costs_no_memory_of_its_own() -> None:
    """A list of the pieces between the spaces would take 20 times as much."""
    spaced = "data:image/png;base64," + "AA AA " * (LIMIT // 8)
    tracemalloc.start()
    try:
        await from_json(image=spaced)
        assert tracemalloc.get_traced_memory()[1] < 12 * LIMIT
    finally:
        tracemalloc.stop()


async def test_fields_of_a_form_may_look_like_files_and_be_empty() -> None:
    parts = [("image", ONE), ("prompt", ("blob", b"a cat")), ("size", ("blob", b"")), ("n", (None, b""))]
    assert await from_form(parts) == ({"prompt": "a cat"}, Uploads((ONE,)))


REFUSED: list[tuple[Any, str, str]] = [
    ("http://127.0.0.1/a.png", "image", "image URLs are not fetched; send the picture as a data URL or a file"),
    ({"image_url": "HTTPS://example.com/a.png"}, "image", "not fetched"),
    ({"file_id": "file-1"}, "image", "files are not kept"),
    ("data:image/svg+xml,<svg/>", "image", "base64"),
    ("data:image/png;base64,#", "image", "base64"),
    ("a.png", "image", "base64"),
    ("é", "image", "base64"),
    ([url(ONE)] * 3, "image", "at most 2 pictures, got 3"),
    *((value, "image", "must be a data URL") for value in (5, True, {}, {"image_url": 5}, [None], [[url(ONE)]])),
]


@pytest.mark.parametrize(("value", "param", "message"), REFUSED, ids=lambda value: repr(value)[:24])
async def test_what_is_no_picture_is_refused_by_name(value: Any, param: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        await from_json(image=value)
    assert caught.value.param == param
    assert len(str(caught.value)) < 300


async def test_what_is_given_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="images: give it or image, not both"):
        await from_json(image=url(ONE), images=[url(ONE)])
    with pytest.raises(InvalidRequest, match="images: give it or image, not both"):
        await from_form([("image", ONE), ("images", ONE)])
    with pytest.raises(InvalidRequest, match="mask: at most one, got 2"):
        await from_form([("image", ONE), ("mask", TWO), ("mask", TWO)])
    with pytest.raises(InvalidRequest, match="'prompt' is given twice"):
        await from_form([("prompt", (None, "a")), ("prompt", ("blob", "b"))])
    with pytest.raises(InvalidRequest, match="not fetched"):
        await from_form([("image", (None, "http://127.0.0.1/a.png"))])


async def test_a_route_has_names_of_its_own() -> None:
    """What it does not know stays a field, to be refused as any other."""
    assert await from_json(VIDEOS, image=url(ONE), mask=url(ONE)) == ({"image": url(ONE), "mask": url(ONE)}, Uploads())
    assert await from_json(VIDEOS, input_reference={"image_url": url(ONE)}) == ({}, Uploads((ONE,)))


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
@pytest.mark.parametrize(
    "fields",
    [{"input_reference": ("a.png", ONE, "image/png")}, {"extra_body": {"input_reference": {"image_url": url(ONE)}}}],
    ids=["file", "url"],
)
async def test_openai_sends_a_reference(fields: dict[str, Any]) -> None:
    sent: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json={})

    with OpenAI(
        base_url="http://a/v1", api_key="-", http_client=httpx.Client(transport=httpx.MockTransport(note))
    ) as ai:
        ai.videos.create(prompt="a cat", **fields)
    assert await read(sent[0], VIDEOS) == ({"prompt": "a cat"}, Uploads((ONE,)))


@settings(max_examples=100)
@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["image_url", "url", "file_id"]), inner)))  # fmt: skip
async def test_no_value_does_more_than_be_refused(value: Any) -> None:
    sent = httpx.Request(
        "POST", "http://a/", content=json.dumps({"image": value}), headers={"content-type": "application/json"}
    )
    with suppress(InvalidRequest):
        await read(sent)
