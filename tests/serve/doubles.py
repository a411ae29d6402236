"""Stages that misbehave, for `import_path` in a test's configuration."""

from __future__ import annotations

from typing import Any

from ray.serve.deployment import Application

from deployments.app import compose
from deployments.settings import AppSettings
from deployments.stage import StageServer
from lightx2v.config import parse_settings


class NeverReleases(StageServer):
    """Upstream's mistake: the transformer ignores the call to give way. The other stages obey."""

    async def give_way(self, limit: int) -> int:
        if self._stage.name == "denoise":
            return int(self._stage.resident)
        return await super().give_way(limit)


def never_releases(args: dict[str, Any]) -> Application:
    return compose(parse_settings(AppSettings, args), NeverReleases)
