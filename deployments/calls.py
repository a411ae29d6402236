"""The calls between a stage process and the coordinator of its card, typed for both ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ray.actor import ActorHandle

from deployments.messages import Terms
from deployments.moved import TransferBytes
from deployments.remote import answer
from deployments.tenants import Member
from lightx2v.core import Progress
from lightx2v.residency.lease import Command, Lease


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process has at the moment: bytes of weights on the device, and what it has copied so far."""

    weights: int
    transferred: TransferBytes


class CoordinatorCalls(Protocol):
    """What a coordinator answers. Every call but the first names the epoch that `join` returned and the caller, and
    raises StaleEpoch if the caller has not joined that epoch."""

    async def join(self, member: Member, holdings: Holdings, lease: Lease | None) -> str:
        """Registers a process with what it holds, and with its lease from another epoch. Returns the epoch."""

    async def lease(self, epoch: str, holder_id: str, activation_bytes: int, terms: Terms) -> Lease:
        """Waits for the right to run. Raises OutOfMemory or DeadlineExceeded."""

    async def release(self, epoch: str, holder_id: str, lease_id: str, holdings: Holdings) -> None:
        """The run is over."""

    async def abandon(self, epoch: str, holder_id: str) -> None:
        """The caller of `lease` went away and cannot know whether it was granted; either way it is void."""

    async def next_command(self, epoch: str, holder_id: str) -> Command:
        """Waits until this process has to give way, or may fetch. Gives the same command until it is answered."""

    async def resized(self, epoch: str, holder_id: str, command_id: str, holdings: Holdings) -> None:
        """The process has carried this command out."""

    async def weigh(self, epoch: str, holder_id: str, context: int) -> None:
        """The process itself takes `context` bytes of the card from now on."""

    async def advance(self, epoch: str, holder_id: str, request_id: str, progress: Progress) -> None:
        """How far the run of this process is."""

    async def max_replicas(self, epoch: str, holder_id: str) -> int:
        """How many replicas of this stage the card has room for, beside all others as they are."""

    async def ready(self, epoch: str, holder_id: str) -> None:
        """Raises OutOfMemory if the budget is too small for this model however its weights are moved."""


class RemoteCoordinator(CoordinatorCalls):
    """A coordinator in a process of its own. Raises RayActorError when that has died."""

    def __init__(self, actor: ActorHandle) -> None:
        self._actor = actor

    async def join(self, member: Member, holdings: Holdings, lease: Lease | None) -> str:
        return await answer(self._actor.join.remote(member, holdings, lease))

    async def lease(self, epoch: str, holder_id: str, activation_bytes: int, terms: Terms) -> Lease:
        return await answer(self._actor.lease.remote(epoch, holder_id, activation_bytes, terms))

    async def release(self, epoch: str, holder_id: str, lease_id: str, holdings: Holdings) -> None:
        await answer(self._actor.release.remote(epoch, holder_id, lease_id, holdings))

    async def abandon(self, epoch: str, holder_id: str) -> None:
        await answer(self._actor.abandon.remote(epoch, holder_id))

    async def next_command(self, epoch: str, holder_id: str) -> Command:
        return await answer(self._actor.next_command.remote(epoch, holder_id))

    async def resized(self, epoch: str, holder_id: str, command_id: str, holdings: Holdings) -> None:
        await answer(self._actor.resized.remote(epoch, holder_id, command_id, holdings))

    async def weigh(self, epoch: str, holder_id: str, context: int) -> None:
        await answer(self._actor.weigh.remote(epoch, holder_id, context))

    async def advance(self, epoch: str, holder_id: str, request_id: str, progress: Progress) -> None:
        await answer(self._actor.advance.remote(epoch, holder_id, request_id, progress))

    async def max_replicas(self, epoch: str, holder_id: str) -> int:
        return await answer(self._actor.max_replicas.remote(epoch, holder_id))

    async def ready(self, epoch: str, holder_id: str) -> None:
        await answer(self._actor.ready.remote(epoch, holder_id))

    async def report(self) -> dict[str, Any]:
        """The card's entry of GET /v1/residency."""
        return await answer(self._actor.report.remote())

    async def progress(self, request_id: str) -> Progress | None:
        """How far a request is that runs on this card."""
        return await answer(self._actor.progress.remote(request_id))
