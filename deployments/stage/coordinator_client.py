"""A stage's client of its coordinator: it joins, asks for leases, obeys commands, and survives a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import Context, copy_context
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from ray.exceptions import RayActorError

from deployments.card.members import Member
from deployments.card.protocol import CoordinatorCalls, Holdings
from deployments.card.transfer import TransferBytes
from lightx2v.errors import StaleEpoch
from lightx2v.residency.lease import Fetch, Lease, Recall, Room, Shrink, Work
from lightx2v.types import Progress

T = TypeVar("T")

RETRY_SECONDS = 0.2
RECALL_SECONDS = 1.0
"""A recalled process asks for its next command after this time, if its lease has neither come nor ended until then."""
log = logging.getLogger(__name__)


class Weights(Protocol):
    """The weights of one stage on the device. They are never dropped or fetched while a lease is running."""

    async def drop(self, limit: int) -> int:
        """Keeps at most `limit` bytes on the device; returns the bytes that are left."""

    async def fetch(self, limit: int) -> int:
        """Fetches weights until there are at most `limit` bytes; returns the bytes there or on their way."""

    def transferred(self) -> TransferBytes:
        """The bytes that the process has copied so far."""


class Latest(Generic[T]):
    """Sends messages one at a time, and of those that wait only the latest. `start` runs the sending in a task."""

    def __init__(
        self,
        send: Callable[[T], Coroutine[Any, Any, None]],
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._send, self._start = send, start
        self._waiting: list[T] = []
        self._sending: asyncio.Task[None] | None = None

    def put(self, message: T) -> None:
        """Sends a message, without waiting for it."""
        self._waiting = [message]
        if self._sending is None or self._sending.done():
            self._sending = self._start(self._run())

    async def _run(self) -> None:
        while self._waiting:
            await self._send(self._waiting.pop())


class CoordinatorClient:
    """Connects a stage process to its card's coordinator. `find` returns the coordinator, or its successor. `recalled`
    is called when the running lease is to end at its next step boundary; it may be called again until then."""

    def __init__(
        self,
        member: Member,
        find: Callable[[], CoordinatorCalls],
        weights: Weights,
        recalled: Callable[[], None] = lambda: None,
    ) -> None:
        self._member, self._find, self._weights, self._recalled = member, find, weights, recalled
        self._held = 0
        self._lease: Lease | None = None
        self._turned = asyncio.Event()
        self._epoch = ""
        self._joining = asyncio.Lock()
        self._variables = Context()
        self._news = Latest(self._tell, self.apart)
        self._apart: set[asyncio.Task[None]] = set()

    async def start(self) -> asyncio.Task[None]:
        """Joins the coordinator. Returns the task that obeys its commands from then on."""
        self._variables = copy_context()
        await self._join("")
        return asyncio.create_task(self._obey())

    @asynccontextmanager
    async def lease(self, room: Room, work: Work, seconds: float) -> AsyncIterator[Lease]:
        """Holds a lease, the right to run. `room`: of the first job. `work`: of all that wait. The body calls `holds`
        with the bytes that it left resident. Raises OutOfMemory, or DeadlineExceeded after `seconds`."""
        self._lease = lease = await self._ask(room, work, seconds)
        self._held = lease.weights
        self._turned.set()
        try:
            yield lease
        finally:
            self._lease = None
            await asyncio.shield(self.apart(self._release(lease.id, self._holdings())))

    def holds(self, nbytes: int) -> None:
        """Notes the bytes of weights that a run left on the device."""
        self._held = nbytes

    def tell(self, work: Work, progress: Mapping[str, Progress]) -> None:
        """Reports what waits and runs here, and the progress of each request that runs, without waiting."""
        self._news.put((work, progress))

    async def weigh(self, context: int) -> None:
        """Reports the bytes that the process itself takes on the card, if they have changed."""
        if context != self._member.holder.context:
            self._member = replace(self._member, holder=replace(self._member.holder, context=context))
            await self._call(lambda coordinator, epoch: coordinator.update(epoch, self._id, self._member))

    async def introduce(self, member: Member) -> None:
        """Replaces the description with which the process joined, now that its stage is loaded."""
        self._member = member
        await self._call(lambda coordinator, epoch: coordinator.introduce(epoch, self._id, member))

    def apart(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `work` to its end, even if its request is cancelled. Ray cancels the calls of a request with it, and
        knows them by the context variables; so the task runs in the context of the start."""
        task = asyncio.get_running_loop().create_task(work, context=self._variables)
        self._apart.add(task)  # the loop holds only a weak reference
        task.add_done_callback(self._apart.discard)
        return task

    async def max_replicas(self) -> int:
        """The number of replicas of this stage that the card has room for."""
        return await self._call(lambda coordinator, epoch: coordinator.max_replicas(epoch, self._id))

    async def ready(self) -> None:
        """Raises OutOfMemory if this model cannot run within the budget."""
        await self._call(lambda coordinator, epoch: coordinator.ready(epoch, self._id))

    @property
    def _id(self) -> str:
        return self._member.holder.id

    def _holdings(self) -> Holdings:
        return Holdings(self._held, self._weights.transferred())

    async def _ask(self, room: Room, work: Work, seconds: float) -> Lease:
        asked = asyncio.ensure_future(
            self._call(lambda coordinator, epoch: coordinator.lease(epoch, self._id, room, work, seconds))
        )
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.cancel()
            await asyncio.shield(self.apart(self._abandon()))
            raise

    async def _abandon(self) -> None:
        await self._call(lambda coordinator, epoch: coordinator.abandon(epoch, self._id))

    async def _release(self, lease_id: str, holdings: Holdings) -> None:
        await self._call(lambda coordinator, epoch: coordinator.release(epoch, self._id, lease_id, holdings))
        self._turned.set()

    async def _tell(self, news: tuple[Work, Mapping[str, Progress]]) -> None:
        await self._call(lambda coordinator, epoch: coordinator.tell(epoch, self._id, *news))

    async def _obey(self) -> None:
        while True:
            command = await self._call(lambda coordinator, epoch: coordinator.next_command(epoch, self._id))
            if isinstance(command, Recall):
                await self._end(command)
            elif self._lease is None:  # commands are for idle stages: any other has lapsed on its way
                await self._resize(command)

    async def _end(self, recall: Recall) -> None:
        """Passes a recall on. It is given until its lease has ended, and may arrive before the lease does."""
        self._turned.clear()
        if self._lease is not None and self._lease.id == recall.lease:
            self._recalled()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._turned.wait(), RECALL_SECONDS)

    async def _resize(self, command: Shrink | Fetch) -> None:
        if isinstance(command, Fetch):
            self._held = command.weights
            self._held = await self._weights.fetch(command.weights)
        else:
            self._held = await self._weights.drop(command.weights)
        await self._resized(command.id)

    async def _resized(self, command_id: str) -> None:
        holdings = self._holdings()
        await self._call(lambda coordinator, epoch: coordinator.resized(epoch, self._id, command_id, holdings))

    async def _call(self, call: Callable[[CoordinatorCalls, str], Awaitable[T]]) -> T:
        """Calls the coordinator. If it has restarted, joins the new epoch with the present holdings and calls again."""
        while True:
            epoch = self._epoch
            try:
                return await call(self._coordinator, epoch)
            except RayActorError as error:
                log.warning("the coordinator is gone, joining its successor: %s", error)
            except StaleEpoch:
                log.info("the coordinator has begun a new epoch")
            await self._join(epoch)

    async def _join(self, stale: str) -> None:
        """Joins the present coordinator, unless another task has done so since the epoch `stale`."""
        async with self._joining:
            if self._epoch != stale:
                return
            while True:
                self._coordinator = self._find()
                try:
                    self._epoch = await self._coordinator.join(self._member, self._holdings(), self._lease)
                    return
                except RayActorError as error:
                    if getattr(error, "actor_init_failed", False):
                        raise
                    log.warning("the coordinator died during the join; trying again: %s", error)
                    await asyncio.sleep(RETRY_SECONDS)
