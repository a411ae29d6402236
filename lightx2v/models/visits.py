"""Work that pauses before every block, so that several works can share one visit of a block."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from enum import Enum, auto
from typing import TypeVar

T = TypeVar("T")


class Pause(Enum):
    """The place of a pause."""

    BLOCK = auto()
    """Before a block is called."""
    STEP = auto()
    """Between two denoising steps."""


class Move(Enum):
    """A caller's message to a work that pauses between two steps."""

    AWAY = auto()
    """Its tensors leave the device for the host."""
    BACK = auto()
    """They return."""


Visits = Generator[Pause, Move | None, T]
"""Work in pieces. It pauses before every block, and returns a T at its end. What it computes between two pauses does
not depend on other works, so its result has the same bits alone and among others."""


def together(works: Sequence[Visits[T]]) -> Visits[list[T]]:
    """The results of `works`, in their order. All of them pass a block before the first goes on to the next. An error
    in one ends them all."""
    results: dict[int, T] = {}
    while len(results) < len(works):
        yield Pause.BLOCK
        for index, work in enumerate(works):
            if index not in results:
                try:
                    next(work)
                except StopIteration as end:
                    results[index] = end.value
    return [results[index] for index in range(len(works))]


def within(context: Callable[[], AbstractContextManager[object]], work: Visits[T]) -> Visits[T]:
    """`work`, each piece of it in a context of its own. The context is left at every pause, so it does not reach other
    works."""
    to: Move | None = None
    while True:
        with context():
            try:
                pause = work.send(to)
            except StopIteration as end:
                result: T = end.value
                return result
        to = yield pause


def movable(move: Callable[[Move], None], work: Visits[T]) -> Visits[T]:
    """`work`, whose tensors can leave the device between two steps. The caller sends a Move in place of going on, and
    gets the same pause again."""
    while True:
        try:
            pause = next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        while (to := (yield pause)) is not None:
            move(to)
