"""A closed loop, whose clients wait for their answers, and an open loop, whose requests come whatever is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import islice

from benchmarks.load.answer import Answer
from benchmarks.load.client import Client
from benchmarks.load.mix import Call

PROGRESS_SECONDS = 10.0
RETRY_SECONDS = 1.0
"""The seconds before a refused client's next request, if the server names none."""


class Record:
    """The answers so far, in the order in which they came. It prints how far the load is every ten seconds."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self._start = self._printed = time.monotonic()

    def add(self, answer: Answer) -> None:
        self.answers.append(answer)
        if answer.ended - self._printed >= PROGRESS_SECONDS:
            self._printed = answer.ended
            made = sum(one.is_picture for one in self.answers)
            print(f"  {answer.ended - self._start:.0f} s: {made} pictures, {len(self.answers)} answers", flush=True)


async def closed_loop(
    client: Client, calls: Iterator[Call], clients: int, requests: int | None = None, seconds: float | None = None
) -> list[Answer]:
    """`clients` clients, each of which sends its next request when it has its answer. They begin no request after so
    many requests or seconds. A client that is refused waits as long as the server says before its next."""
    record, start = Record(), time.monotonic()
    end = start + (float("inf") if seconds is None else seconds)
    turns = islice(calls, requests)

    async def send() -> None:
        due = start
        while due < end and (call := next(turns, None)):
            answer = await client.ask(call, due)
            record.add(answer)
            due = answer.ended
            if not answer.is_picture:
                wait = min(RETRY_SECONDS if answer.retry_after is None else answer.retry_after, max(0.0, end - due))
                due += wait
                await asyncio.sleep(wait)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(send())
    return record.answers


async def open_loop(client: Client, calls: Iterator[Call], arrivals: Sequence[float]) -> list[Answer]:
    """One request at each of the moments, in seconds from now."""
    record, start = Record(), time.monotonic()

    async def send(call: Call, due: float) -> None:
        record.add(await client.ask(call, due))

    async with asyncio.TaskGroup() as group:
        for arrival in arrivals:
            due = start + arrival
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(send(next(calls), due))
    return record.answers
