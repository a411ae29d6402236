"""The calls between a stage process and the coordinator of its card, typed for both ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ray.actor import ActorHandle

from deployments.card.members import Member
from deployments.card.transfer import TransferBytes
from deployments.remote import answer
from lightx2v.residency.lease import Command, Lease, Room, Work
from lightx2v.types import Progress


@dataclass(frozen=True, slots=True)
class Holdings:
    """The present state of a process: bytes of weights on the device, and bytes that it has copied so far."""

    weights: int
    transferred: TransferBytes


class CoordinatorCalls(Protocol):
    """The interface of a coordinator. Every call but `join` names the caller and the epoch that `join` returned, and
    raises StaleEpoch if the caller has not joined that epoch."""

    async def join(self, member: Member, holdings: Holdings, lease: Lease | None) -> str:
        """Registers a process with its holdings, and with its lease from an earlier epoch. Returns the epoch."""

    async def lease(self, epoch: str, holder_id: str, room: Room, work: Work, seconds: float) -> Lease:
        """Waits for the right to run. `room`: of the first job. `work`: of all that wait. Raises OutOfMemory, or
        DeadlineExceeded after `seconds`."""

    async def tell(self, epoch: str, holder_id: str, work: Work, progress: Mapping[str, Progress]) -> None:
        """Replaces what the caller told before: the work of its open request for a lease, or what is left of its run,
        and the progress of each request that runs, by its id."""

    async def release(self, epoch: str, holder_id: str, lease_id: str, holdings: Holdings) -> None:
        """Returns the lease after the run."""

    async def abandon(self, epoch: str, holder_id: str) -> None:
        """Voids the process's last request for a lease, granted or not: its caller went away and cannot know."""

    async def next_command(self, epoch: str, holder_id: str) -> Command:
        """Waits until this process must give way, may fetch, or is to end its lease. Returns the same command until it
        is answered: a recall by the release of its lease."""

    async def resized(self, epoch: str, holder_id: str, command_id: str, holdings: Holdings) -> None:
        """Answers a command that the process has carried out."""

    async def introduce(self, epoch: str, holder_id: str, member: Member) -> None:
        """Replaces the description of a process that has loaded its stage, and ends the lease of its start: the process
        itself counts from now on."""

    async def update(self, epoch: str, holder_id: str, member: Member) -> None:
        """Replaces the description of a process, after its memory was measured."""

    async def max_replicas(self, epoch: str, holder_id: str) -> int:
        """The number of replicas of this stage that the card has room for, beside the other stages as they are."""

    async def ready(self, epoch: str, holder_id: str) -> None:
        """Raises OutOfMemory if the budget is too small for this model under its policy."""


class RemoteCoordinator(CoordinatorCalls):
    """A coordinator in another process. Every call raises RayActorError if that process has died."""

    def __init__(self, actor: ActorHandle) -> None:
        self._actor = actor

    async def join(self, member: Member, holdings: Holdings, lease: Lease | None) -> str:
        return await answer(self._actor.join.remote(member, holdings, lease))

    async def lease(self, epoch: str, holder_id: str, room: Room, work: Work, seconds: float) -> Lease:
        return await answer(self._actor.lease.remote(epoch, holder_id, room, work, seconds))

    async def tell(self, epoch: str, holder_id: str, work: Work, progress: Mapping[str, Progress]) -> None:
        await answer(self._actor.tell.remote(epoch, holder_id, work, progress))

    async def release(self, epoch: str, holder_id: str, lease_id: str, holdings: Holdings) -> None:
        await answer(self._actor.release.remote(epoch, holder_id, lease_id, holdings))

    async def abandon(self, epoch: str, holder_id: str) -> None:
        await answer(self._actor.abandon.remote(epoch, holder_id))

    async def next_command(self, epoch: str, holder_id: str) -> Command:
        return await answer(self._actor.next_command.remote(epoch, holder_id))

    async def resized(self, epoch: str, holder_id: str, command_id: str, holdings: Holdings) -> None:
        await answer(self._actor.resized.remote(epoch, holder_id, command_id, holdings))

    async def introduce(self, epoch: str, holder_id: str, member: Member) -> None:
        await answer(self._actor.introduce.remote(epoch, holder_id, member))

    async def update(self, epoch: str, holder_id: str, member: Member) -> None:
        await answer(self._actor.update.remote(epoch, holder_id, member))

    async def max_replicas(self, epoch: str, holder_id: str) -> int:
        return await answer(self._actor.max_replicas.remote(epoch, holder_id))

    async def ready(self, epoch: str, holder_id: str) -> None:
        await answer(self._actor.ready.remote(epoch, holder_id))

    async def report(self) -> dict[str, Any]:
        """The card's entry of GET /v1/residency."""
        return await answer(self._actor.report.remote())

    async def progress(self, request_id: str) -> Progress | None:
        """The progress of a request; None if it does not run on this card."""
        return await answer(self._actor.progress.remote(request_id))
