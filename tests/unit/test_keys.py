"""API keys: who gets in, what a key allows, and how the file changes while the server runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from deployments.http.askers import asker_of, best_asker
from deployments.http.key_check import KeyCheck
from deployments.http.keys import KeyFile
from lightx2v.__main__ import main
from lightx2v.errors import InvalidRequest, InvalidSettings
from lightx2v.key_hash import hash_of
from tests.unit.handles import front, handles, served

MODELS, WORK = "/v1/models", "/v1/images/generations"


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def entry(secret: str, **limits: Any) -> dict[str, Any]:
    return {"name": f"owner-of-{secret}", "sha256": hash_of(secret), **limits}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def write(file: Path, *entries: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(list(entries)))
    return file


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    return str(error["message"])


class Behind:
    """An application behind the check. It answers once `open` is set, with the priority that the caller may have."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.entered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered += 1
        await self.open.wait()
        await JSONResponse(best_asker(Request(scope), 5).priority)(scope, receive, send)


class Door:
    """The check with a clock of its own."""

    def __init__(self, keys: KeyFile) -> None:
        self.now, self.behind = 0.0, Behind()
        transport = httpx.ASGITransport(KeyCheck(self.behind, keys, clock=lambda: self.now))
        self.http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")

    async def ask(self, secret: str, method: str = "POST") -> httpx.Response:
        return await self.http.request(method, WORK, headers=bearer(secret))


async def test_only_callers_with_a_key_get_in(checkpoint: Path, file: Path) -> None:
    write(file, entry("right"))
    async with front(served(checkpoint, handles()), keys_file=file) as http:
        for headers in ({}, bearer(""), {"Authorization": "right"}, {"Authorization": "Basic right"}):
            answer = await http.get(MODELS, headers=headers)
            assert "Authorization: Bearer KEY" in refused(answer, 401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        refused(await http.post(WORK, headers=bearer("wrong"), json={"prompt": "a"}), 401, "invalid_api_key")
        assert (await http.get(MODELS, headers=bearer("right"))).status_code == 200
        made = await http.post(WORK, headers={"authorization": "bearer right"}, json={"prompt": "a red circle"})
        assert made.status_code == 200
        assert (await http.get("/health")).status_code != 401, "probes have no key"


async def test_without_keys_other_machines_are_refused_unless_allowed(checkpoint: Path, file: Path) -> None:
    """The address is that of the accepting socket: a peer may write what it likes into its headers."""
    stages, pod = handles(), "http://10.0.0.5:8000"
    forwarded = {"X-Forwarded-For": "127.0.0.1", "Host": "127.0.0.1"}
    async with front(served(checkpoint, stages)) as http:
        assert (await http.get(MODELS)).status_code == 200
        for headers in ({}, forwarded):
            assert "server.keys_file" in refused(await http.get(pod + MODELS, headers=headers), 403, "keys_required")
        assert (await http.get(f"{pod}/health")).status_code != 403, "probes come from other machines"
    async with front(served(checkpoint, stages), allow_without_keys=True) as http:
        assert (await http.get(pod + MODELS)).status_code == 200
    async with front(served(checkpoint, stages), keys_file=write(file, entry("right"))) as http:
        assert (await http.get(pod + MODELS, headers=bearer("right"))).status_code == 200
        refused(await http.get(pod + MODELS), 401, "invalid_api_key")


async def test_a_key_that_is_taken_out_is_refused_at_once(file: Path) -> None:
    door = Door(KeyFile(write(file, entry("old"))))
    assert (await door.ask("old")).status_code == 200
    write(file, entry("newer"))
    assert [(await door.ask(secret)).status_code for secret in ("old", "newer")] == [401, 200]


@pytest.mark.parametrize("broken", ["- name: [", "{}", "- name: someone", ""])
async def test_a_broken_change_is_logged_and_the_keys_from_before_stay(
    broken: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(KeyFile(write(file, entry("right"))))
    file.write_text(broken)
    assert [(await door.ask("right")).status_code for _ in range(2)] == [200, 200]
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1, "once for each change"
    with pytest.raises(InvalidSettings, match="keys"):
        KeyFile(file)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("a") | {"sha256": "a"}], "sha256"),
        ([entry("a") | {"name": "two words"}], "name"),
        ([entry("a"), entry("a") | {"name": "other"}], "two have the sha256"),
        ([entry("a"), entry("b") | {"name": "owner-of-a"}], "two have the name"),
        ([entry("a", request_per_minute=1)], "requests_per_minute"),
        ([entry("a", max_priority=11)], "max_priority"),
    ],
)
def test_what_an_entry_must_be(entries: list[dict[str, Any]], message: str, file: Path) -> None:
    with pytest.raises(InvalidSettings, match=message):
        KeyFile(write(file, *entries))


def test_a_file_that_is_not_there_says_how_to_make_one(file: Path) -> None:
    with pytest.raises(InvalidSettings, match="python -m lightx2v key NAME"):
        KeyFile(file)


async def test_the_requests_for_work_of_a_minute_are_bounded(file: Path) -> None:
    door = Door(KeyFile(write(file, entry("some", requests_per_minute=2), entry("all"))))
    for at, status in ((0.0, 200), (50.0, 200), (55.0, 429), (60.0, 200), (61.0, 429), (110.0, 200)):
        door.now = at
        answer = await door.ask("some")
        assert answer.status_code == status
        assert (await door.ask("some", "GET")).status_code == (await door.ask("all")).status_code == 200
        if at == 55.0:
            assert "2 requests a minute" in refused(answer, 429, "rate_limit_exceeded")
            assert answer.headers["retry-after"] == "5"


async def test_the_open_requests_of_a_key_are_bounded(file: Path) -> None:
    door = Door(KeyFile(write(file, entry("one", max_concurrent=1), entry("other"))))
    door.behind.open.clear()
    first, other = (asyncio.create_task(door.ask(secret)) for secret in ("one", "other"))
    while door.behind.entered < 2:
        await asyncio.sleep(0)
    assert "1 requests of this key are open" in refused(await door.ask("one"), 429, "rate_limit_exceeded")
    door.behind.open.set()
    assert ((await first).status_code, (await other).status_code) == (200, 200)
    assert (await door.ask("one")).status_code == 200


async def test_a_key_bounds_the_priority_and_is_a_caller_of_its_own(file: Path) -> None:
    keys = KeyFile(write(file, entry("low", max_priority=-1), entry("high")))
    door = Door(keys)
    assert [(await door.ask(secret)).json() for secret in ("low", "high")] == [-1, 5], "the server's is 5"
    low, high = (Request({"type": "http", "headers": [], "lightx2v.key": keys.find(name)}) for name in ("low", "high"))
    assert asker_of(low, -2, 5).caller != asker_of(high, -2, 5).caller
    assert [asker_of(low, asked, 5).priority for asked in (-2, 0)] == [-2, -1], "who asks for none has 0"
    with pytest.raises(InvalidRequest, match="at most -1"):
        asker_of(low, 1, 5)


async def test_the_command_makes_a_key_that_gets_in_and_is_never_logged(
    file: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    assert main(["key", "alice"]) == 0
    printed = capsys.readouterr()
    file.write_text(printed.out)
    secret = printed.err.split()[-1]
    assert secret not in printed.out, "only its hash is kept"
    door = Door(KeyFile(file))
    assert (await door.ask(secret)).status_code == 200
    assert (await door.ask(secret + "x")).status_code == 401
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert "by alice" in logged
    assert secret not in logged
    assert yaml.safe_load(printed.out)[0]["sha256"] == hash_of(secret)
