"""Bodies and forms, read up to a limit whatever the sender says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from deployments.http import forms
from deployments.http.bodies import read_body
from deployments.http.errors import error_response
from deployments.http.forms import MAX_FIELD_BYTES, MAX_PARTS, read_form
from lightx2v.errors import InvalidRequest, LightError, PayloadTooLarge

LIMIT = 100_000


def is_image(name: str) -> bool:
    return name == "image"


async def body_route(request: Request) -> Response:
    return JSONResponse({"nbytes": len(await read_body(request, LIMIT))})


async def form_route(request: Request) -> Response:
    parts = await read_form(request, LIMIT, is_image)
    return JSONResponse([[part.name, len(part.data) if is_image(part.name) else part.text] for part in parts])


async def answer(_: Request, error: Exception) -> Response:
    return error_response(error)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    routes = [Route("/body", body_route, methods=["POST"]), Route("/form", form_route, methods=["POST"])]
    with TestClient(Starlette(routes=routes, exception_handlers={LightError: answer})) as test_client:
        yield test_client


JSON_TYPE = {"content-type": "application/json; charset=utf-8"}


def test_a_body_is_read_up_to_the_limit(client: TestClient) -> None:
    assert client.post("/body", content=b"x" * LIMIT, headers=JSON_TYPE).json() == {"nbytes": LIMIT}
    refused = client.post("/body", content=b"x" * (LIMIT + 1), headers=JSON_TYPE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "\xff"])
def test_another_content_type_is_refused(client: TestClient, kind: str) -> None:
    for path in ("/body", "/form"):
        answer = client.post(path, content=b"{}", headers={b"content-type": kind.encode("latin-1")})
        assert answer.status_code == 400
        assert "Content-Type must be" in answer.json()["error"]["message"]


FORM_TYPE = "multipart/form-data; boundary=b"
FILE_HEAD = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


def endless(kind: str, length: str | None, first: bytes = b"") -> tuple[Request, list[int]]:
    """A request whose body never ends, and the bytes of it that were taken."""
    taken: list[int] = []

    async def receive() -> dict[str, Any]:
        body = b"x" * 1000 if taken or not first else first
        taken.append(len(body))
        assert sum(taken) < 2 * LIMIT, "read on"
        return {"type": "http.request", "body": body, "more_body": True}

    headers = [(b"content-type", kind.encode())] + ([(b"content-length", length.encode())] if length else [])
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive), taken


@pytest.mark.parametrize("length", [None, "10", "-5", "abc"])
async def test_reading_stops_at_the_limit_whatever_was_declared(length: str | None) -> None:
    request, taken = endless("application/json", length)
    with pytest.raises(PayloadTooLarge):
        await read_body(request, LIMIT)
    assert sum(taken) == LIMIT + 1000


async def test_a_form_without_end_is_refused() -> None:
    request, taken = endless(FORM_TYPE, None, FILE_HEAD)
    with pytest.raises(PayloadTooLarge):
        await read_form(request, LIMIT, is_image)
    assert LIMIT < sum(taken) <= LIMIT + 1000


@pytest.mark.parametrize("length", ["100001", str(2**64), "9" * 10_000])
async def test_a_declared_excess_is_refused_unread(length: str) -> None:
    request, taken = endless("application/json", length)
    with pytest.raises(PayloadTooLarge):
        await read_body(request, LIMIT)
    form, form_taken = endless(FORM_TYPE, length)
    with pytest.raises(PayloadTooLarge):
        await read_form(form, LIMIT, is_image)
    assert taken == form_taken == []


def upload(data: bytes = b"png") -> tuple[str, bytes, str]:
    return ("a.png", data, "image/png")


def test_a_form_has_its_parts_in_order(client: TestClient) -> None:
    files = [("image", upload(b"one")), ("image", upload(b"three"))]
    answer = client.post("/form", data={"prompt": "a cat 🐈", "n": "2"}, files=files)
    assert answer.json() == [["prompt", "a cat 🐈"], ["n", "2"], ["image", 3], ["image", 5]]


@pytest.mark.parametrize("filename", [b"", b'; filename="blob"'])
@pytest.mark.parametrize(("name", "value"), [("image", 5), ("prompt", "a cat")])
def test_the_name_and_no_filename_says_what_a_part_is(
    client: TestClient, filename: bytes, name: str, value: object
) -> None:
    """Some clients send fields as files, and files as fields."""
    head = b'--b\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + filename + b"\r\n\r\n"
    answer = client.post("/form", content=head + b"a cat\r\n--b--\r\n", headers={"content-type": FORM_TYPE})
    assert answer.json() == [[name, value]]


def test_a_file_that_nobody_chose_is_absent(client: TestClient) -> None:
    body = FILE_HEAD.replace(b"a.png", b"") + b"\r\n--b--\r\n"
    assert client.post("/form", content=body, headers={"content-type": FORM_TYPE}).json() == []
    body = FILE_HEAD + b"\r\n--b--\r\n"
    assert client.post("/form", content=body, headers={"content-type": FORM_TYPE}).json() == [["image", 0]]


@pytest.mark.parametrize(
    ("fields", "files", "message"),
    [
        ({f"key{i}": "a" for i in range(MAX_PARTS)}, [("image", upload())], "more than 128 parts"),
        ({"prompt": "a" * (MAX_FIELD_BYTES + 1)}, [("image", upload())], "prompt: a field of at most"),
        ({"prompt": b"\xff"}, [("image", upload())], "must be text in UTF-8"),
        ({"prompt": "a" * MAX_FIELD_BYTES}, [("image", upload())] * 3, ""),
        ({"prompt": "a"}, [("image", upload(b"a" * MAX_FIELD_BYTES + b"a"))], ""),
    ],
)
def test_another_form_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, fields: Any, files: Any, message: str
) -> None:
    monkeypatch.setattr("tests.unit.test_bodies.LIMIT", 2 * MAX_FIELD_BYTES)
    answer = client.post("/form", data=fields, files=files)
    assert answer.status_code == (400 if message else 200)
    assert message in answer.text


def test_the_last_line_may_lack_its_end(client: TestClient) -> None:
    answer = client.post("/form", content=FILE_HEAD + b"ab\r\n--b--", headers={"content-type": FORM_TYPE})
    assert answer.json() == [["image", 2]]


FORMS = {
    "no boundary": ("multipart/form-data", b""),
    "empty boundary": ("multipart/form-data; boundary=", b"--\r\n"),
    "long boundary": ("multipart/form-data; boundary=" + "b" * 1000, b""),
    "empty": (FORM_TYPE, b""),
    "not a form": (FORM_TYPE, b"hello"),
    "cut": (FORM_TYPE, FILE_HEAD),
    "no name": (FORM_TYPE, b"--b\r\nContent-Disposition: form-data\r\n\r\na\r\n--b--\r\n"),
    "no disposition": (FORM_TYPE, b"--b\r\n\r\na\r\n--b--\r\n"),
    "long header": (FORM_TYPE, b"--b\r\nX: " + b"x" * 50_000),
    "many headers": (FORM_TYPE, b"--b\r\n" + b"X: y\r\n" * 5000 + b"\r\n"),
    "charset": ("multipart/form-data; charset=base64; boundary=b", FILE_HEAD + b"x\r\n--b"),
}


@pytest.mark.parametrize(("kind", "body"), FORMS.values(), ids=FORMS)
def test_a_broken_form_is_refused(client: TestClient, kind: str, body: bytes) -> None:
    assert client.post("/form", content=body, headers={"content-type": kind}).status_code == 400


async def test_a_form_that_is_refused_is_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream is closed at once, not when it is collected: then two close it at a time."""
    ended: list[bool] = []

    async def bounded(*_: Any) -> AsyncGenerator[bytes, None]:
        try:
            yield b"--wrong"
        finally:
            ended.append(True)

    monkeypatch.setattr(forms, "bounded", bounded)
    request = Request({"type": "http", "method": "POST", "headers": [(b"content-type", FORM_TYPE.encode())]})
    with pytest.raises(InvalidRequest):
        await read_form(request, LIMIT, is_image)
    assert ended == [True]


PIECES = [b"--b", b"--b--", b"\r\n", b"\n", b":", b";", b'"', b"=", b"\0", b"\xff", FILE_HEAD, b"name*=utf-8''%ff"]


@settings(max_examples=150)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=12), st.text("b;= \"'*%", max_size=8))
async def test_no_form_does_more_than_be_refused(pieces: list[bytes], suffix: str) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"".join(pieces), "more_body": False}

    headers = [(b"content-type", (FORM_TYPE + suffix).encode())]
    with suppress(InvalidRequest):
        await read_form(Request({"type": "http", "method": "POST", "headers": headers}, receive), LIMIT, is_image)
