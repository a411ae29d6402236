"""The entry of one model's queue in GET /v1/residency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deployments.serving.served_models import Model


def queue_body(model: Model, gpus: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`gpus`: the reports of the cards, which tell how many of the model's stages run. A request that no stage runs
    waits. `predicted_seconds`: until all of them have ended; None if nothing is known of the model yet."""
    stages = (stage for card in gpus for stage in card["stages"])
    running = sum(bool(stage["running"]) for stage in stages if stage["model"] == model.id)
    inside, seconds = model.admission.inside, model.admission.drained_in
    return {
        "waiting": max(0, inside - running),
        "running": min(inside, running),
        "predicted_seconds": None if seconds is None else round(seconds, 1),
    }
