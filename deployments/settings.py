"""What `args` of an application's configuration file may say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from lightx2v.config import ENVIRONMENT, EngineSettings, Settings, parse_settings
from lightx2v.core import StageName
from lightx2v.errors import InvalidSettings


class Fractions(Settings):
    """Of a card, for one replica of each stage; the models of one application divide them."""

    encode: float = Field(default=0.2, gt=0, le=1)
    denoise: float = Field(default=0.6, gt=0, le=1)
    refine: float | None = Field(default=None, gt=0, le=1)
    """Absent: a model that has this stage shares `denoise` out evenly between the two."""
    decode: float = Field(default=0.2, gt=0, le=1)

    def of(self, stages: Sequence[StageName]) -> dict[StageName, float]:
        """The fraction of each stage of a model."""
        denoise, refine = self.denoise, self.refine
        if "refine" in stages and refine is None:
            denoise = refine = denoise / 2
        fractions = {"encode": self.encode, "denoise": denoise, "refine": refine or 0.0, "decode": self.decode}
        return {stage: fractions[stage] for stage in stages}

    def sets_per_card(self, stages: Sequence[StageName]) -> int:
        """How many replicas of all stages fit on a card together; more of one would keep another from being placed."""
        return max(1, int(1 / sum(self.of(stages).values()) + 1e-9))


class AppSettings(EngineSettings):
    """One of the models behind one ingress."""

    name: str | None = None
    """The model's id in the API; absent: the last part of `model`."""

    gpu_fractions: Fractions = Fractions()
    """Ray's bookkeeping of who may share a card. Above a half, no two replicas of a stage do."""

    max_replicas: int = Field(default=4, ge=1)
    """Of each stage; the cards' room may allow fewer."""

    depth_per_replica: float = Field(default=2.0, gt=0)
    """Requests, waiting or running, for which a stage should have a replica."""

    upscale_delay_seconds: float = Field(default=2.0, ge=0)
    downscale_delay_seconds: float = Field(default=15.0, ge=0)

    max_queue: int = Field(default=64, ge=1)
    """Requests inside; one more is answered 503 at once."""

    request_timeout_seconds: float = Field(default=300.0, gt=0)

    @property
    def model_id(self) -> str:
        return self.name or Path(self.model).name


def parse_models(args: dict[str, Any]) -> tuple[AppSettings, ...]:
    """The settings of each model of an application: `args` itself, or each entry of `args["models"]` over the rest.

    Raises InvalidSettings, also where two models would have the same id.
    """
    if "models" not in args:
        return (parse_settings(AppSettings, args),)
    entries, shared = args["models"], {key: value for key, value in args.items() if key != "models"}
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidSettings('models: write a list of mappings, as in [{"model": "owner/a"}, {"model": "owner/b"}]')
    environment = {field: variable for field, variable in ENVIRONMENT.items() if field != "model"}
    models = tuple(parse_settings(AppSettings, shared | entry, environment) for entry in entries)
    ids = [model.model_id for model in models]
    for twice in {name for name in ids if ids.count(name) > 1}:
        raise InvalidSettings(f"models: two are called {twice!r}; give one of them another `name`")
    return models
