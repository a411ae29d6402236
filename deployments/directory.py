"""Where the coordinators are: one named actor per card, on the card's node."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deployments.coordinator import Coordinator

NAMESPACE = "residency"


def find_coordinator(card_id: str) -> Any:
    """The card's coordinator on this node, made by whoever asks first.

    Ray repeats calls that a crash interrupted: what reads is repeatable, and what changes anything names an epoch.
    """
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": f"residency:{card_id}", "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    actor = ray.remote(Coordinator)
    return actor.options(**options, max_restarts=-1, max_task_retries=-1, num_cpus=0, scheduling_strategy=node).remote(
        card_id
    )


async def all_coordinators() -> list[Any]:
    """Every card's coordinator in the cluster."""
    named = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
    names = [entry["name"] for entry in named if entry["namespace"] == NAMESPACE]
    found = []
    for name in names:
        with contextlib.suppress(ValueError):  # it has left since it was listed
            found.append(await asyncio.to_thread(ray.get_actor, name, NAMESPACE))
    return found
