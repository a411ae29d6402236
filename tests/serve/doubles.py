"""Stages that misbehave, for `import_path` in a test's configuration."""

from __future__ import annotations

import os
from typing import Any

import torch
from ray.serve.deployment import Application

from deployments.app import compose
from deployments.settings import parse_application
from deployments.stage.server import StageServer


class NeverReleases(StageServer):
    """Upstream's mistake: the transformer ignores the call to give way. The other stages obey."""

    async def __init__(self, *args: Any) -> None:  # type: ignore[misc]
        await super().__init__(*args)
        if self._stage.name == "denoise":
            self._weights.drop = self._ignore  # type: ignore[method-assign]

    async def _ignore(self, limit: int) -> int:
        return int(self._stage.resident)


CALLS = "TEST_CALLS"
"""The variable with the path of the file to which Traced adds the stage of each call that has ended."""


class Traced(StageServer):
    """Runs what would be compiled as it was traced: on CPUs the code itself takes minutes to make."""

    async def __init__(self, *args: Any) -> None:  # type: ignore[misc]
        compiled = torch.compile

        def trace(forward: Any, *, options: Any, **keywords: Any) -> Any:
            return compiled(forward, backend="eager", **keywords)

        torch.compile = trace  # type: ignore[assignment]
        await super().__init__(*args)

    async def call(self, *args: Any, **inputs: Any) -> Any:
        output = await super().call(*args, **inputs)
        with open(os.environ[CALLS], "a") as calls:
            print(self._stage.name, file=calls)
        return output


def traced(args: dict[str, Any]) -> Application:
    return compose(parse_application(args), Traced)


def never_releases(args: dict[str, Any]) -> Application:
    return compose(parse_application(args), NeverReleases)
