"""A stage's side of the coordinator: it joins, asks for memory, gives way when told, and survives a restart."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from typing import Any, Literal

from ray.exceptions import RayActorError, RayTaskError

from deployments.moved import Moved
from deployments.tenants import Member
from lightx2v.core import Progress
from lightx2v.errors import StaleEpoch
from lightx2v.residency.lease import Fetch, Lease

Job = Literal["run", "encode"]
"""What a stage can be asked for; only the autoencoder's encodes."""

RETRY_SECONDS = 0.2
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """When a request was admitted, and how many seconds are left to it."""

    admitted_at: float
    seconds: float

    def since(self, start: float) -> Terms:
        """What is left of them now; `start`: monotonic seconds when they held."""
        return replace(self, seconds=self.seconds - (time.monotonic() - start))


class Lessee:
    """One stage process and its card's coordinator.

    `find` gives the coordinator, anew after it died; `drop` brings the device weights down to a number of bytes and
    `fetch` up to it, both return what is there then and are never called while a lease is running; `moved` reads the
    counters.
    """

    def __init__(
        self,
        member: Member,
        find: Callable[[], Any],
        drop: Callable[[int], Awaitable[int]],
        fetch: Callable[[int], Awaitable[int]],
        moved: Callable[[], Moved],
    ) -> None:
        self._member, self._find, self._drop, self._fetch, self._moved = member, find, drop, fetch, moved
        self._id = member.holder.id
        self._weights = 0
        self._lease: Lease | None = None
        self._epoch = ""
        self._joining = asyncio.Lock()
        self._context = Context()
        self._news: tuple[str, Progress] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._apart: set[asyncio.Task[None]] = set()

    async def start(self) -> asyncio.Task[None]:
        """Joins, and obeys from then on in the task that is returned."""
        self._context = copy_context()
        await self._join("")
        return asyncio.create_task(self._obey())

    @asynccontextmanager
    async def lease(self, workspace: int, terms: Terms) -> AsyncIterator[Lease]:
        """The right to run. The body says by `holds` what it left resident."""
        self._lease = lease = await self._ask(workspace, terms)
        self._weights = lease.weights
        try:
            yield lease
        finally:
            self._lease = None
            release = self._call("release", lease.id, self._weights, self._id, self._moved(), fenced=True)
            await asyncio.shield(self.apart(release))

    def holds(self, nbytes: int) -> None:
        """Notes what the stage has resident after its run."""
        self._weights = nbytes

    def advance(self, request_id: str, progress: Progress) -> None:
        """Lets the coordinator know how far a run is: the latest, one message at a time, and nobody waits for it."""
        self._news = request_id, progress
        if self._telling is None or self._telling.done():
            self._telling = self.apart(self._tell())

    async def weigh(self, context: int) -> None:
        """Says what the process itself takes on the card, if that has changed."""
        holder = self._member.holder
        if context != holder.context:
            self._member = replace(self._member, holder=replace(holder, context=context))
            await self._call("weigh", self._member, fenced=True)

    def apart(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `work` to its end, whatever becomes of the request that it is for. Ray takes what a request calls down
        with it, and tells whose call it is by the context: so this runs in the one of the start."""
        task = asyncio.get_running_loop().create_task(work, context=self._context)
        self._apart.add(task)  # the loop alone would forget it
        task.add_done_callback(self._apart.discard)
        return task

    async def room(self) -> int:
        """Replicas of this stage that the card has room for."""
        room: int = await self._call("room", self._member.holder.model, self._member.holder.stage)
        return room

    async def ready(self) -> None:
        """Raises OutOfMemory if this model cannot run within the budget."""
        await self._call("ready", self._member.holder.model)

    async def _ask(self, workspace: int, terms: Terms) -> Lease:
        asked = asyncio.ensure_future(
            self._call("lease", self._id, workspace, terms.admitted_at, terms.seconds, fenced=True)
        )
        try:
            lease: Lease = await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.cancel()
            await asyncio.shield(self.apart(self._call("abandon", self._id, fenced=True)))
            raise
        return lease

    async def _tell(self) -> None:
        while self._lease is not None and self._news is not None:
            news, self._news = self._news, None
            await self._call("advance", self._id, *news, fenced=True)

    async def _obey(self) -> None:
        while True:
            command = await self._call("next_command", self._id, fenced=True)
            if self._lease is not None:  # only the idle are told something: this one has lapsed on its way
                continue
            if isinstance(command, Fetch):
                self._weights = command.weights
                self._weights = await self._fetch(command.weights)
            else:
                self._weights = await self._drop(command.weights)
            await self._call("resized", self._id, self._weights, command.id, self._moved(), fenced=True)

    async def _call(self, method: str, *args: object, fenced: bool = False) -> Any:
        """Calls the coordinator; if it has restarted, joins the new epoch with what is held and calls again."""
        while True:
            epoch = self._epoch
            try:
                return await getattr(self._coordinator, method).remote(*((epoch,) if fenced else ()), *args)
            except RayActorError:
                log.warning("the coordinator is gone during %s; joining its successor", method)
            except RayTaskError as error:
                if not isinstance(error.cause, StaleEpoch):
                    raise error.cause from None
            await self._join(epoch)

    async def _join(self, stale: str) -> None:
        """Registers with the present coordinator, unless another task has done so since `stale`."""
        async with self._joining:
            if self._epoch != stale:
                return
            while True:
                self._coordinator = self._find()
                try:
                    join = self._coordinator.join.remote(self._member, self._weights, self._lease, self._moved())
                    self._epoch = await join
                    return
                except RayActorError as error:
                    if getattr(error, "actor_init_failed", False):
                        raise
                    log.warning("the coordinator died while it was joined; trying again: %s", error)
                    await asyncio.sleep(RETRY_SECONDS)
