"""Finds the coordinators: one named actor per card, on the card's node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deployments.card.coordinator import Coordinator
from deployments.card.protocol import RemoteCoordinator
from deployments.remote import LOST
from lightx2v.types import Progress

T = TypeVar("T")

NAMESPACE = "residency"
ANSWER_SECONDS = 5.0

log = logging.getLogger(__name__)


def find_coordinator(card_id: str) -> RemoteCoordinator:
    """The coordinator of a card of this node; the first caller creates it.

    Ray repeats calls that a crash or a broken connection interrupted. That is safe: reads are repeatable, a command is
    given until it is answered, and every call that changes something names an epoch.
    """
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": f"residency:{card_id}", "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    actor = ray.remote(Coordinator).options(
        **options, max_restarts=-1, max_task_retries=-1, num_cpus=0, scheduling_strategy=node
    )
    return RemoteCoordinator(actor.remote(card_id))


async def reports() -> list[dict[str, Any]]:
    """The entries of GET /v1/residency: one for each card whose coordinator answers."""
    return [report for report in await _ask_all(lambda coordinator: coordinator.report()) if report is not None]


async def progress_of(request_id: str) -> Progress | None:
    """The progress of a request; None if it runs on no card that answers."""
    found = await _ask_all(lambda coordinator: coordinator.progress(request_id))
    return next((progress for progress in found if progress is not None), None)


async def _ask_all(ask: Callable[[RemoteCoordinator], Awaitable[T]]) -> list[T | None]:
    """The answers of all cards' coordinators; None for each that is gone or does not answer in time."""
    return await asyncio.gather(*(_ask(ask(one)) for one in await _all_coordinators()))


async def _ask(answer: Awaitable[T]) -> T | None:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await answer
    except (TimeoutError, *LOST) as error:
        log.warning("a coordinator does not answer: %r", error)
        return None


async def _all_coordinators() -> list[RemoteCoordinator]:
    named = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
    names = [entry["name"] for entry in named if entry["namespace"] == NAMESPACE]
    found = []
    for name in names:
        with contextlib.suppress(ValueError):  # it has left since it was listed
            found.append(RemoteCoordinator(await asyncio.to_thread(ray.get_actor, name, NAMESPACE)))
    return found
