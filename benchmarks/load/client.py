"""Sends requests to a server, hundreds at once, and notes when each was sent and answered."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import aiohttp

from benchmarks.load.answer import NONE, OK, Answer, code_of, digest_of
from benchmarks.load.mix import Call

TIMEOUT_SECONDS = 600.0


class Client:
    """Connections to one server, as many as there are requests at once, kept open between them."""

    def __init__(self, url: str) -> None:
        self._session = aiohttp.ClientSession(
            url, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS)
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ask(self, call: Call, due: float) -> Answer:
        """The answer to a request that was due at a moment of time.monotonic(), also if it is none."""
        made = call.ask.post(call.number)
        body, headers = made.read(), {"Content-Type": made.headers["Content-Type"]}
        sent = time.monotonic()
        try:
            async with self._session.post(made.url.path, data=body, headers=headers) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            return Answer(call, due, sent, time.monotonic(), NONE, type(error).__name__)
        ended = time.monotonic()
        if answer.status == OK:
            return Answer(call, due, sent, ended, OK, digest=digest_of(content))
        wait = answer.headers.get("Retry-After")
        return Answer(
            call, due, sent, ended, answer.status, code_of(content), retry_after=None if wait is None else float(wait)
        )

    async def cards(self) -> list[dict[str, Any]]:
        """The cards of GET /v1/residency."""
        async with self._session.get("/v1/residency") as answer:
            answer.raise_for_status()
            found: list[dict[str, Any]] = (await answer.json())["gpus"]
            return found
