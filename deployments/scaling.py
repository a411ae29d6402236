"""The number of replicas that a stage should have: it follows the queue, within the room of the cards."""

from __future__ import annotations

import math
from typing import Any

import ray
from ray.serve.config import AutoscalingContext


class QueueDepth:
    """A scaling policy: replicas in proportion to the requests that run or wait.

    Serve's controller calls it, and applies bounds and delays. Requests that wait at the coordinator are inside a
    replica's handler, so Serve counts them too.
    """

    def __init__(self, depth_per_replica: float, most_per_gpu: int | None) -> None:
        """`most_per_gpu`: replicas that fit on a GPU by Ray's fractions; None on CPUs, which count as one card."""
        self._depth_per_replica, self._most_per_gpu = depth_per_replica, most_per_gpu

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted, and an empty state for the next call."""
        wanted = math.ceil(context.total_num_requests / self._depth_per_replica)
        return max(1, min(wanted, self._max_replicas(context))), {}

    def _max_replicas(self, context: AutoscalingContext) -> int:
        reported = (context.aggregated_metrics or {}).get("max_replicas", {}).values()
        if not reported:
            return int(context.target_num_replicas)
        per_card = int(max(reported))
        return per_card if self._most_per_gpu is None else min(per_card, self._most_per_gpu) * gpus()


def gpus() -> int:
    """The number of GPUs in the cluster now: a node may join after the application was built."""
    return int(ray.cluster_resources().get("GPU", 0))
