"""Calls to other processes, and their errors. Free of torch."""

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
"""Errors of a call whose process or node is gone, or whose input was lost with a node. OutOfMemoryError: Ray's monitor
of host memory killed the process."""

T = TypeVar("T")


async def answer(reply: Awaitable[T]) -> T:
    """The reply's value. Raises the original error of the other process; errors of the call itself, such as
    RayActorError, pass unchanged."""
    try:
        return await reply
    except RayTaskError as error:
        raise cause(error) from None


def cause(error: BaseException) -> BaseException:
    """The original error of the other process, without Ray's wrappers. Any other error is returned as it is."""
    while isinstance(inner := vars(error).get("cause"), BaseException):
        error = inner
    return error
