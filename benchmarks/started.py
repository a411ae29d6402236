"""A server for a benchmark on one card: it is ready, and its host copies outlive it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from benchmarks.server import Server, serve
from deployments.card.host_copies import HostCopies

READY_SECONDS = 400.0
EVERY_LINE = {"RAY_DEDUP_LOGS": "0"}
"""Serve logs the duration of every call of a stage; Ray would print only one of many."""
FAILURES = (RuntimeError, OSError, ValueError, HTTPException, httpx.HTTPError, aiohttp.ClientError)
"""Failures of one server, after which others are still measured."""


def exit_on_sigterm() -> None:
    """Lets SIGTERM end the servers too: one that is left running would keep the card."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextmanager
def started(
    arguments: Mapping[str, Any], host_copies: HostCopies, log: Path | None = None
) -> Iterator[tuple[Server, float]]:
    """A ready server, and the seconds that its start took. Raises RuntimeError, with the server's reason, if it will
    never be ready."""
    start = time.monotonic()
    with serve(arguments, environment=EVERY_LINE, ready=False, log=log) as server:
        await_ready(server)
        ready = time.monotonic() - start
        for stage in server.card()["stages"]:
            host_copies.hold(stage["pid"])
        yield server, ready


def await_ready(server: Server) -> None:
    health = server.wait_until(lambda: _decided(server.http.get("/health").json()), READY_SECONDS, "readiness")
    if health["status"] == "failed":
        raise RuntimeError(health["reason"])


def _decided(health: dict[str, str]) -> dict[str, str] | None:
    return health if health["status"] in ("ok", "failed") else None
