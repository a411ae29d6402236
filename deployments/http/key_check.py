"""Lets only callers with a key in, each within its limits."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.http.errors import error_response
from deployments.http.keys import SCOPE_KEY, Key, KeyFile
from lightx2v.errors import KeyNotValid, LightError, RateLimited

MINUTE = 60.0
BUSY_SECONDS = 1.0
"""The seconds after which a caller with too many open requests may try again."""

log = logging.getLogger(__name__)


class KeyCheck:
    """ASGI middleware that asks for `Authorization: Bearer KEY`, and puts the key's entry into the request's scope.
    `open_paths` need no key.

    The limits of a key are those of requests for work, which are sent by POST. `clock`: monotonic seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyFile,
        open_paths: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._keys, self._open_paths, self._clock = app, keys, open_paths, clock
        self._open: Counter[str] = Counter()
        self._begun: dict[str, deque[float]] = defaultdict(deque)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        try:
            key = self._key_of(Headers(scope=scope))
            if scope["method"] == "POST":
                self._check_limits(key)
        except LightError as error:
            await error_response(error)(scope, receive, send)
            return
        scope[SCOPE_KEY] = key
        with self._counted(key, scope):
            await self._app(scope, receive, send)

    def _key_of(self, headers: Headers) -> Key:
        """Raises KeyNotValid."""
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise KeyNotValid("this server asks for a key: send the header `Authorization: Bearer KEY`")
        if (key := self._keys.find(secret.strip())) is None:
            raise KeyNotValid("this key is not known here, or is not valid any more")
        return key

    def _check_limits(self, key: Key) -> None:
        """Raises RateLimited."""
        if key.max_concurrent is not None and self._open[key.name] >= key.max_concurrent:
            raise RateLimited(f"{key.max_concurrent} requests of this key are open already", BUSY_SECONDS)
        begun, now = self._begun[key.name], self._clock()
        while begun and begun[0] <= now - MINUTE:
            begun.popleft()
        if key.requests_per_minute is not None and len(begun) >= key.requests_per_minute:
            raise RateLimited(
                f"{key.requests_per_minute} requests a minute are allowed for this key", begun[0] + MINUTE - now
            )

    @contextmanager
    def _counted(self, key: Key, scope: Scope) -> Iterator[None]:
        if scope["method"] != "POST":
            yield
            return
        log.info("POST %r by %s", scope["path"], key.name)
        if key.requests_per_minute is not None:
            self._begun[key.name].append(self._clock())
        self._open[key.name] += 1
        try:
            yield
        finally:
            self._open[key.name] -= 1
