"""How many replicas a stage should have: by what waits for it, and never more than the cards have room for."""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext


class QueueDepth:
    """Runs in Serve's controller, which applies bounds and delays around it.

    What waits at the coordinator is inside a replica's handler, so Serve counts it with what runs and what queues at
    the handles.
    """

    def __init__(self, depth_per_replica: float, cards: int) -> None:
        self._depth_per_replica, self._cards = depth_per_replica, cards

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The replicas wanted; no state."""
        wanted = math.ceil(context.total_num_requests / self._depth_per_replica)
        return max(1, min(wanted, self._room(context))), {}

    def _room(self, context: AutoscalingContext) -> int:
        reported = (context.aggregated_metrics or {}).get("room", {}).values()
        return int(max(reported)) * self._cards if reported else int(context.target_num_replicas)
