"""Where the coordinators are: one named actor per card, on the card's node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deployments.coordinator import Coordinator

NAMESPACE = "residency"
ANSWER_SECONDS = 5.0

log = logging.getLogger(__name__)


def find_coordinator(card_id: str) -> Any:
    """The card's coordinator on this node, made by whoever asks first.

    Ray repeats calls that a crash or a broken connection interrupted. Reading is repeatable, a command is given again
    until it is answered, and what changes anything names an epoch.
    """
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": f"residency:{card_id}", "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    actor = ray.remote(Coordinator)
    return actor.options(**options, max_restarts=-1, max_task_retries=-1, num_cpus=0, scheduling_strategy=node).remote(
        card_id
    )


async def ask_all(method: str, *args: object) -> list[Any]:
    """What the coordinators of all cards answer; those that are gone, or whose node is, answer nothing."""
    answers = await asyncio.gather(*(_ask(one, method, *args) for one in await _all_coordinators()))
    return [answer for (answer,) in filter(None, answers)]


async def _ask(coordinator: Any, method: str, *args: object) -> tuple[Any, ...]:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return (await getattr(coordinator, method).remote(*args),)
    except (TimeoutError, RayActorError) as error:
        log.warning("a coordinator does not answer: %r", error)
        return ()


async def _all_coordinators() -> list[Any]:
    named = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
    names = [entry["name"] for entry in named if entry["namespace"] == NAMESPACE]
    found = []
    for name in names:
        with contextlib.suppress(ValueError):  # it has left since it was listed
            found.append(await asyncio.to_thread(ray.get_actor, name, NAMESPACE))
    return found
