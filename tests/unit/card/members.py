"""Stages that a coordinator is driven with in this process, on a card that the test sets.

Nothing sleeps to let something happen. That nothing was granted is read in the report after a call that would have
granted it; timeouts are only ever upper bounds.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from typing import TypeVar

from deployments.card.coordinator import Coordinator
from deployments.card.members import Member
from deployments.card.protocol import Holdings
from deployments.card.transfer import TransferBytes
from lightx2v.residency.lease import Command, Holder, Lease, Room, Shrink, Work
from lightx2v.residency.plan import StageSize
from lightx2v.types import Policy, StageName

T = TypeVar("T")
Processes = Callable[[], subprocess.Popen[bytes]]

LONG_SECONDS = 60.0
NOTHING = Holdings(0, TransferBytes())


def held(weights: int, h2d: int = 0) -> Holdings:
    """What a process says that it holds."""
    return Holdings(weights, TransferBytes(h2d, 0))


class FakeCard:
    """The driver of a card of `nbytes`; what it lists is set by the test, and each look at it is counted."""

    def __init__(self, nbytes: int = 100) -> None:
        self.nbytes = nbytes
        self.listed: dict[int, int] = {}
        self.answers = True
        self._looks = asyncio.Queue[None]()

    def total(self) -> int:
        return self.nbytes

    def used(self) -> dict[int, int]:
        self._looks.put_nowait(None)
        if not self.answers:
            raise OSError("the driver does not answer")
        return dict(self.listed)

    async def looked_at(self, times: int) -> None:
        """Returns after so many looks from now."""
        while not self._looks.empty():
            self._looks.get_nowait()
        for _ in range(times):
            await self._looks.get()


def member(
    process: subprocess.Popen[bytes],
    stage: StageName = "denoise",
    nbytes: int = 60,
    *,
    units: int = 1,
    workspace: int = 0,
    policy: Policy = "whole",
    context: int = 0,
    budget: int | None = None,
    model: str = "klein",
    settings: str = "",
) -> Member:
    """A stage of `nbytes` of weights in so many equal units, one of which fits its slot."""
    unit = nbytes // units
    size = StageSize(stage, (unit,) * units, nbytes - unit * units, workspace, unit, 1)
    holder = Holder(f"{stage}-{process.pid}", model, stage, process.pid, context, nbytes, settings)
    return Member(holder, size, policy, budget)


async def join(coordinator: Coordinator, *members: Member) -> str:
    """All of them with empty hands; the epoch."""
    return [await coordinator.join(one, NOTHING, None) for one in members][-1]


async def lease_of(
    coordinator: Coordinator,
    epoch: str,
    name: str,
    admitted_at: float = 0.0,
    *,
    workspace: int = 0,
    seconds: float = LONG_SECONDS,
) -> Lease:
    """A lease for one job."""
    return await coordinator.lease(epoch, name, Room(workspace, 0), Work(1, 0.0, admitted_at), seconds)


async def ask(
    coordinator: Coordinator,
    one: Member,
    admitted_at: float = 0.0,
    *,
    workspace: int = 0,
    seconds: float = LONG_SECONDS,
) -> asyncio.Task[Lease]:
    """A call of lease() that has reached the coordinator."""
    epoch = (await coordinator.report())["epoch"]
    asked = asyncio.create_task(
        lease_of(coordinator, epoch, one.holder.id, admitted_at, workspace=workspace, seconds=seconds)
    )
    await asyncio.sleep(0)
    return asked


async def release(coordinator: Coordinator, lease: Lease, weights: int = 0, h2d: int = 0) -> None:
    epoch = (await coordinator.report())["epoch"]
    await coordinator.release(epoch, lease.holder, lease.id, held(weights, h2d))


async def running(coordinator: Coordinator) -> list[int]:
    """The pids that have a lease; kept up to date synchronously, whoever has yet to hear of it."""
    return [stage["pid"] for stage in (await coordinator.report())["stages"] if stage["running"]]


async def granted(coordinator: Coordinator) -> int:
    report = await coordinator.report()
    assert report["granted_bytes"] <= report["peak_granted_bytes"] <= report["budget_bytes"]
    return int(report["granted_bytes"])


async def within(awaitable: Awaitable[T], seconds: float = 4.0) -> T:
    async with asyncio.timeout(seconds):
        return await awaitable


def shrink(order: Command) -> Shrink:
    assert isinstance(order, Shrink)
    return order
