"""Pictures under URLs of the server: where they lead, and how long."""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from deployments.http import kept
from deployments.http.kept import KEEP_SECONDS, Kept, new_id
from tests.unit.handles import front, handles, served

ROUTE = "/v1/images/generations"
ASKED = {"prompt": "a red circle", "response_format": "url", "n": 2}


@pytest.mark.parametrize(("output_format", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
async def test_each_url_has_its_picture(checkpoint: Path, output_format: str, suffix: str) -> None:
    async with front(served(checkpoint, handles())) as http:
        answer = (await http.post(ROUTE, json=ASKED | {"output_format": output_format})).json()
        urls = [item["url"] for item in answer["data"]]
        files = await asyncio.gather(*map(http.get, urls))
    assert len(set(urls)) == 2
    assert all(url.startswith("http://127.0.0.1:8000/v1/files/picture_") and url.endswith(suffix) for url in urls)
    for file in files:
        assert file.headers["content-type"] == f"image/{output_format}"
        assert Image.open(BytesIO(file.content)).format == output_format.upper()


async def test_a_url_that_never_was(checkpoint: Path) -> None:
    async with front(served(checkpoint, handles())) as http:
        answer = await http.get("/v1/files/picture_0.png")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "picture_not_found")


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({"Host": "localhost:9000"}, "http://localhost:9000/"),
        ({"Host": "gpu.lan"}, "http://gpu.lan/"),
        ({"Host": "gpu.lan", "X-Forwarded-Proto": "https"}, "https://gpu.lan/"),
        ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "gpu.lan"}, "https://gpu.lan/"),
        ({"X-Forwarded-Proto": "javascript", "X-Forwarded-Host": "evil.example"}, "http://127.0.0.1:8000/"),
        ({"X-Forwarded-Host": "["}, "http://127.0.0.1:8000/"),
    ],
)
async def test_a_url_leads_where_the_client_asked(checkpoint: Path, headers: dict[str, str], base: str) -> None:
    async with front(served(checkpoint, handles()), allowed_hosts=("gpu.lan",)) as http:
        answer = (await http.post(ROUTE, json=ASKED, headers=headers)).json()
    assert all(item["url"].startswith(f"{base}v1/files/picture_") for item in answer["data"])


class Clock:
    """Unix seconds, as the test says."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_is_kept_expires_and_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_COUNT", 3)
    monkeypatch.setattr(kept, "MAX_NBYTES", 10)
    clock = Clock()
    values = Kept[str](clock)

    def known() -> str:
        return "".join(name for name in "abcdef" if values.find(name) is not None)

    seen = []
    for nbytes, name in ((4, "a"), (4, "b"), (1, "c"), (1, "d"), (6, "e"), (20, "f")):
        values.add(name, name, nbytes)
        seen.append(known())
        clock.now += 1
    assert seen == ["a", "ab", "abc", "bcd", "cde", "f"]
    clock.now = 1004 + KEEP_SECONDS
    assert known() == "f"
    clock.now += 1
    assert known() == ""


def test_ids_cannot_be_guessed() -> None:
    ids = {new_id("picture") for _ in range(20)}
    assert len(ids) == 20
    assert {len(one) for one in ids} == {len("picture_") + 32}
