"""Input that is meant to hurt, over the wire: a 4xx that says what is wrong, and the next request is served."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator

import httpx
import pytest

from benchmarks.pictures import noise, png
from benchmarks.server import Server
from lightx2v.types import Size

JSON = "application/json"


@pytest.fixture(autouse=True, scope="module")
def _the_same_processes_serve_the_next_request(server: Server) -> Iterator[None]:
    before = sorted(stage["pid"] for stage in server.card()["stages"])
    yield
    assert server.generate(seed=1).status_code == 200
    assert sorted(stage["pid"] for stage in server.card()["stages"]) == before


def refused(answer: httpx.Response, param: str | None, status: int = 400) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert error["param"] == param


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("size", size) for size in ["0x0", "17x17", "1000000000x1000000000", "16x65536", "8192x8192"]),
        *(("size", size) for size in ["-64x64", "64", 64, []]),
        *(("num_inference_steps", steps) for steps in [0, -1, 10**6, "0", 1.5, True]),
        *(("seed", seed) for seed in [-2, 2**64, 10**400, "9" * 5000, "abc", 0.5]),
        *(("guidance_scale", scale) for scale in [-1, "NaN", 1e308, []]),
        *(("n", n) for n in [0, 11, 10**9, "one"]),
        *(("prompt", prompt) for prompt in ["", "   ", 5, [], {}, "nul\0", "\ud800", "x" * 10**5]),
        *(("response_format", kind) for kind in ["bytes", 1]),
        *(("output_format", kind) for kind in ["gif", ""]),
        ("prompt_strength", 1),
    ],
)  # fmt: skip
def test_bad_fields(server: Server, field: str, value: object) -> None:
    body = json.dumps({"prompt": "a circle", field: value})
    answer = server.http.post("/v1/images/generations", content=body, headers={"Content-Type": JSON})
    refused(answer, field)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have(server: Server, number: str) -> None:
    body = f'{{"prompt": "a circle", "guidance_scale": {number}}}'
    answer = server.http.post("/v1/images/generations", content=body, headers={"Content-Type": JSON})
    assert answer.status_code == 400


BODIES = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"prompt": "a", "prompt": "b"}']


@pytest.mark.parametrize("body", BODIES)
def test_bad_bodies(server: Server, body: bytes) -> None:
    answer = server.http.post("/v1/images/generations", content=body, headers={"Content-Type": JSON})
    assert answer.status_code == 400


def test_a_body_that_is_too_long(server: Server) -> None:
    body = b'{"prompt": "' + b"x" * (4 << 20) + b'"}'
    answer = server.http.post("/v1/images/generations", content=body, headers={"Content-Type": JSON})
    refused(answer, None, 413)


def test_a_png_of_200_megapixels(server: Server) -> None:
    """A few hundred kilobytes that would unfold to 600 MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    width, height = 20_000, 10_000
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    squeezed = zlib.compressobj(9)
    row = b"\0" * (3 * width + 1)
    body = b"".join(squeezed.compress(row) for _ in range(height)) + squeezed.flush()
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    refused(server.edit([bomb]), "image")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "too small", "too long"])
def test_bad_images(server: Server, damage: str) -> None:
    whole = png(noise(Size(64, 64)))
    images = {
        "truncated": whole[: len(whole) // 2],
        "text": b"not an image",
        "empty": b"",
        "too small": png(noise(Size(8, 8))),
        "too long": png(noise(Size(1024, 64))),
    }
    refused(server.edit([images[damage]]), "image")


def test_a_video_of_a_model_that_makes_pictures(server: Server) -> None:
    reference = {"input_reference": ("a.png", png(noise(Size(64, 64))), "image/png")}
    refused(server.http.post("/v1/videos", data={"prompt": "a circle"}, files=reference), "model")
    refused(server.http.post("/v1/videos", json={"prompt": "a circle"}), "model")


@pytest.mark.parametrize("body", BODIES)
def test_bad_bodies_of_videos(server: Server, body: bytes) -> None:
    assert server.http.post("/v1/videos", content=body, headers={"Content-Type": JSON}).status_code == 400


def test_an_edit_of_nothing(server: Server) -> None:
    form = {"prompt": (None, "a circle")}
    refused(server.http.post("/v1/images/edits", files=form), "image")


def test_too_many_images(server: Server) -> None:
    assert server.edit([png(noise(Size(64, 64)))] * 20).status_code == 400


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_other_methods(server: Server, method: str) -> None:
    assert server.http.request(method, "/v1/images/generations").status_code == 405


def test_other_paths(server: Server) -> None:
    assert server.http.get("/v1/../../etc/passwd").status_code == 404


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/videos"])
def test_a_form_that_a_page_of_another_site_sends(server: Server, path: str) -> None:
    headers = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    answer = server.http.post(path, data={"prompt": "a circle"}, files={"image": b""}, headers=headers)
    refused(answer, None, 403)


def test_a_name_that_was_rebound_to_loopback(server: Server) -> None:
    """Also where it says that it comes from elsewhere, which Serve's proxy believes."""
    headers = {"Host": "evil.example", "X-Forwarded-For": "8.8.8.8"}
    refused(server.http.get("/v1/models", headers=headers), None, 421)
