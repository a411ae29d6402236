"""How many replicas a stage should have: by what waits for it, and never more than the cards have room for."""

from __future__ import annotations

import math
from typing import Any

import ray
from ray.serve.config import AutoscalingContext


class QueueDepth:
    """Runs in Serve's controller, which applies bounds and delays around it.

    What waits at the coordinator is inside a replica's handler, so Serve counts it with what runs and what queues at
    the handles.
    """

    def __init__(self, depth_per_replica: float, most_per_gpu: int | None) -> None:
        """`most_per_gpu`: replicas that Ray's fractions let onto a GPU; None on CPUs, which count as one card."""
        self._depth_per_replica, self._most_per_gpu = depth_per_replica, most_per_gpu

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The replicas wanted; no state."""
        wanted = math.ceil(context.total_num_requests / self._depth_per_replica)
        return max(1, min(wanted, self._max_replicas(context))), {}

    def _max_replicas(self, context: AutoscalingContext) -> int:
        reported = (context.aggregated_metrics or {}).get("max_replicas", {}).values()
        if not reported:
            return int(context.target_num_replicas)
        per_card = int(max(reported))
        return per_card if self._most_per_gpu is None else min(per_card, self._most_per_gpu) * gpus()


def gpus() -> int:
    """Of the cluster as it is now: a node may join after the application was built."""
    return int(ray.cluster_resources().get("GPU", 0))
