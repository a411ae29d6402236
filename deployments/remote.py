"""Calls to other processes, and why they fail. Free of torch."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)
from ray.serve.exceptions import DeploymentUnavailableError

LOST = (
    RayActorError,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    DeploymentUnavailableError,
)
"""What a call raises whose process is gone, or its node, with the output that lay there. OutOfMemoryError: Ray's memory
monitor of the host killed it."""

T = TypeVar("T")


async def answer(reply: Awaitable[T]) -> T:
    """The reply's value. Raises what was raised in the other process as it was raised there; errors of the call
    itself, such as RayActorError, pass unchanged."""
    try:
        return await reply
    except RayTaskError as error:
        raise cause(error) from None


def cause(error: BaseException) -> BaseException:
    """The error that was raised in the other process, without the ones that Ray puts around it. Any other error is
    returned as it is."""
    while isinstance(inner := vars(error).get("cause"), BaseException):
        error = inner
    return error
