"""What a server's cards tell while it is loaded: the bytes that moved, and how many jobs ran together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

from benchmarks.load.client import Client

SAMPLE_SECONDS = 0.2
REST_SECONDS = 60.0


class CardWatch:
    """`moved`: bytes of weights that came to the cards. `jobs`: by model and stage, each number of jobs that ran
    together when it was looked; nothing of a server that does not tell."""

    def __init__(self) -> None:
        self.moved = 0
        self.jobs: dict[str, list[int]] = defaultdict(list)

    def look(self, cards: Sequence[dict[str, Any]]) -> None:
        for stage in (stage for card in cards for stage in card["stages"]):
            if stage["running"] and stage.get("jobs"):
                self.jobs[f"{stage['model']} {stage['stage']}"].append(stage["jobs"])

    def cohorts(self) -> dict[str, dict[str, float]]:
        """The mean and the largest number of jobs together of each stage."""
        return {name: {"mean": sum(jobs) / len(jobs), "most": max(jobs)} for name, jobs in self.jobs.items()}


@contextlib.asynccontextmanager
async def watched(client: Client) -> AsyncIterator[CardWatch]:
    """Watches until the block has ended and all cards rest."""
    watch, before = CardWatch(), h2d(await resting(client))
    sampler = asyncio.create_task(_sample(client, watch))
    try:
        yield watch
    finally:
        sampler.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampler
    watch.moved = h2d(await resting(client)) - before


async def resting(client: Client) -> list[dict[str, Any]]:
    """The cards when no lease is held and none is asked for. Raises TimeoutError if that does not come about."""
    end = time.monotonic() + REST_SECONDS
    while time.monotonic() < end:
        cards = await client.cards()
        if not any(card["waiting"] or any(stage["running"] for stage in card["stages"]) for card in cards):
            return cards
        await asyncio.sleep(SAMPLE_SECONDS)
    raise TimeoutError(f"the server did not rest within {REST_SECONDS:.0f} s")


def h2d(cards: Sequence[dict[str, Any]]) -> int:
    return sum(card["h2d_bytes_total"] for card in cards)


async def _sample(client: Client, watch: CardWatch) -> None:
    while True:
        watch.look(await client.cards())
        await asyncio.sleep(SAMPLE_SECONDS)
