"""Compares the pictures of a load with those that the same requests make alone."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from benchmarks.load.answer import Answer, pictures
from benchmarks.load.client import Client
from benchmarks.load.loops import closed_loop


def sample(answers: Sequence[Answer], most: int | None, seed: int = 0) -> list[Answer]:
    """The answers with a picture, or `most` of them, drawn at random."""
    made = pictures(answers)
    return made if most is None or most >= len(made) else Random(seed).sample(made, most)


async def check(client: Client, answers: Sequence[Answer]) -> list[Answer]:
    """Those of the answers whose picture is another one when its request is made again, alone. Raises RuntimeError if
    a request that made a picture makes none now."""
    alone = await closed_loop(client, iter([answer.call for answer in answers]), clients=1)
    for answer in alone:
        if not answer.is_picture:
            raise RuntimeError(f"{answer.call.ask.label}, alone: {answer.status} {answer.code}")
    made = {answer.call.number: answer.digest for answer in alone}
    return [answer for answer in answers if made[answer.call.number] != answer.digest]
