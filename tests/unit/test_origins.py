"""What a browser may send for the page of another site, and by which names a loopback server is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.http.origins import OriginCheck
from tests.unit.handles import front, handles, served

LOOPBACK, POD = "127.0.0.1", "10.0.0.5"
ROUTE = "/v1/images/generations"
HOSTS, ORIGINS = ("gpu.lan",), ("https://gpu.lan",)


async def asked(
    method: str,
    headers: Mapping[str, str],
    address: str = LOOPBACK,
    hosts: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
) -> httpx.Response:
    """What an application that says yes to all answers, at a socket of this address."""

    async def yes(scope: Scope, receive: Receive, send: Send) -> None:
        await Response()(scope, receive, send)

    transport = httpx.ASGITransport(OriginCheck(yes, hosts, origins))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{address}:8000") as client:
        return await client.request(method, ROUTE, headers=headers)


def refused(answer: httpx.Response, status: int, code: str, setting: str) -> None:
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert setting in error["message"]


FOREIGN: dict[str, dict[str, str]] = {
    "a form": {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
    "a form of an old browser": {"Origin": "http://evil.example"},
    "a sandboxed frame": {"Origin": "null"},
    "no origin": {"Sec-Fetch-Site": "cross-site"},
    "a neighbour": {"Sec-Fetch-Site": "same-site"},
    "another port": {"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"},
    "a longer name": {"Origin": "http://127.0.0.1:8000.evil.example"},
}
OWN: dict[str, dict[str, str]] = {
    "no browser": {},
    "its own page": {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"},
    "typed by a user": {"Sec-Fetch-Site": "none"},
}


@pytest.mark.parametrize("address", [LOOPBACK, POD])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
async def test_a_page_of_another_site_gets_no_work(headers: dict[str, str], method: str, address: str) -> None:
    answer = await asked(method, headers, address, HOSTS, ORIGINS)
    refused(answer, 403, "origin_not_allowed", "server.allowed_origins")


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
async def test_what_only_reads_is_kept_from_it_by_the_browser(headers: dict[str, str]) -> None:
    assert (await asked("GET", headers)).status_code == 200


@pytest.mark.parametrize("headers", OWN.values(), ids=OWN)
async def test_who_asks_for_himself(headers: dict[str, str]) -> None:
    assert (await asked("POST", headers)).status_code == 200


async def test_an_origin_that_is_allowed() -> None:
    headers = {"Origin": "https://gpu.lan", "Sec-Fetch-Site": "cross-site"}
    assert (await asked("POST", headers, origins=ORIGINS)).status_code == 200


STRANGE = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.5", "[::2]", "[", ":1"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("host", STRANGE)
async def test_a_rebound_name_is_refused_over_loopback(method: str, host: str) -> None:
    refused(await asked(method, {"Host": host}, hosts=HOSTS), 421, "host_not_allowed", "server.allowed_hosts")


@pytest.mark.parametrize("address", [LOOPBACK, "127.1.2.3", "[::1]", "[::ffff:127.0.0.1]"])
@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:8000", "127.0.0.1", "127.9.9.9:1", "[::1]:8000", "gpu.lan", "GPU.lan:443"]
)
async def test_names_of_loopback_and_those_that_are_allowed(host: str, address: str) -> None:
    assert (await asked("GET", {"Host": host}, address, HOSTS)).status_code == 200


async def test_a_probe_names_the_address_of_its_pod() -> None:
    """Or whatever it likes: a bind beyond loopback is the gateway's."""
    assert (await asked("GET", {"Host": f"{POD}:8000"}, POD)).status_code == 200


async def test_a_client_that_says_it_is_forwarded_is_over_loopback_still(checkpoint: Path) -> None:
    """And every route of an ingress is behind it, whatever its settings allow."""
    headers = {"Host": "evil.example", "X-Forwarded-For": "8.8.8.8"}
    async with front(served(checkpoint, handles()), allowed_hosts=("gpu.lan",)) as http:
        for path in ("/health", "/v1/models", "/v1/videos/1", "/nothing"):
            assert (await http.get(path, headers=headers)).status_code == 421
        assert (await http.get("/v1/models", headers={"Host": "gpu.lan"})).status_code == 200
        form = {"Origin": "http://evil.example"}
        for path in ("/v1/images/edits", "/v1/videos"):
            assert (await http.post(path, data={"prompt": "a"}, headers=form)).status_code == 403


PAGE = {"Origin": "https://gpu.lan"}
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


async def test_an_allowed_page_may_ask_and_read_the_answer(checkpoint: Path) -> None:
    """Errors of the server, of its routes and of its middleware too."""
    async with front(served(checkpoint, handles()), allowed_origins=ORIGINS) as http:
        preflight = await http.options(ROUTE, headers=PAGE | PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://gpu.lan"
        assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
        assert {"GET", "POST", "DELETE"} <= set(preflight.headers["access-control-allow-methods"].split(", "))
        strange = PAGE | {"Host": "evil.example"}
        answers = [
            await http.post(ROUTE, headers=PAGE, json={"prompt": "a red circle", "negative_prompt": "blue"}),
            await http.post(ROUTE, headers=PAGE, json={"prompt": ""}),
            await http.get("/nothing", headers=PAGE),
            await http.get("/v1/models", headers=strange),
        ]
        assert [answer.status_code for answer in answers] == [200, 400, 404, 421]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == "https://gpu.lan"
            assert answer.headers["vary"] == "Origin"
            assert "X-Negative-Prompt-Ignored" in answer.headers["access-control-expose-headers"]


async def test_another_page_may_not_read(checkpoint: Path) -> None:
    other = {"Origin": "https://evil.example"}
    async with front(served(checkpoint, handles()), allowed_origins=ORIGINS) as http:
        preflight = await http.options(ROUTE, headers=other | PREFLIGHT)
        refused_post = await http.post(ROUTE, headers=other, json={"prompt": "a"})
        read = await http.get("/v1/models", headers=other)
    assert (preflight.status_code, refused_post.status_code, read.status_code) == (400, 403, 200)
    for answer in (preflight, refused_post, read):
        assert "access-control-allow-origin" not in answer.headers


async def test_without_the_setting_no_page_is_answered(checkpoint: Path) -> None:
    async with front(served(checkpoint, handles())) as http:
        preflight = await http.options(ROUTE, headers=PAGE | PREFLIGHT)
        read = await http.get("/v1/models", headers=PAGE)
    assert (preflight.status_code, read.status_code) == (405, 200)
    assert not [name for answer in (preflight, read) for name in answer.headers if name.startswith("access-control")]


async def test_how_much_is_read_is_a_setting(checkpoint: Path) -> None:
    async with front(served(checkpoint, handles()), max_json_bytes=1024) as http:
        assert (await http.post(ROUTE, json={"prompt": "x" * 2000})).status_code == 413
