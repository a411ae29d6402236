"""What `args` of an application's configuration file may say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from lightx2v.config import ENVIRONMENT, EngineSettings, Settings, parse_bytes, parse_settings
from lightx2v.core import StageName
from lightx2v.errors import InvalidSettings
from lightx2v.limits import Limits


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


def _host(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9._-]+", name):
        raise ValueError(f"{name!r} is not a host's name; write it in small letters, without scheme and port")
    return name


def _origin(text: str) -> str:
    if not re.fullmatch(r"https?://[a-z0-9._:\[\]-]+", text):
        raise ValueError(f"{text!r} is not an origin; write for example https://example.com or http://10.0.0.5:3000")
    return text


HostName = Annotated[str, AfterValidator(_host)]
Origin = Annotated[str, AfterValidator(_origin)]


class ServerSettings(Settings):
    """The HTTP side of an application, whatever its models."""

    allowed_hosts: tuple[HostName, ...] = ()
    """Names, beside those of loopback, by which a connection over loopback may ask: a reverse proxy's on this host."""

    allowed_origins: tuple[Origin, ...] = ()
    """Other sites whose pages may ask for work, as browsers spell them: "https://example.com"."""

    max_json_bytes: int = Field(default=1 << 20, ge=1 << 10, le=1 << 30)
    """Of a JSON body. The default holds two prompts of the longest kind, every character escaped as a \\uXXXX pair."""

    max_upload_bytes: int = Field(default=32 << 20, ge=1 << 10, le=1 << 30)
    """Of a form with its files, "32MiB"."""

    max_references: int = Field(default=Limits().max_references, ge=1, le=64)
    """Of one request; a model may take fewer."""

    @field_validator("max_json_bytes", "max_upload_bytes", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        return parse_bytes(value) if isinstance(value, str) else value


class ApplicationSettings(Settings):
    """All of an application: its models, and the HTTP side before them."""

    server: ServerSettings = ServerSettings()
    models: tuple[AppSettings, ...]

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[AppSettings, ...]) -> tuple[AppSettings, ...]:
        ids = [model.model_id for model in models]
        for twice in {name for name in ids if ids.count(name) > 1}:
            raise ValueError(f"two are called {twice!r}; give one of them another `name`")
        return models

    @property
    def max_queue(self) -> int:
        """Requests inside, of all models together."""
        return sum(model.max_queue for model in self.models)

    @property
    def request_timeout_seconds(self) -> float:
        """The longest of any model."""
        return max(model.request_timeout_seconds for model in self.models)


def parse_application(args: dict[str, Any]) -> ApplicationSettings:
    """`server`, and the settings of each model: the rest of `args`, or each entry of `args["models"]` over that rest.

    Raises InvalidSettings, also where two models would have the same id.
    """
    server = {key: value for key, value in args.items() if key == "server"}
    shared = {key: value for key, value in args.items() if key not in ("models", "server")}
    entries = args.get("models", [{}])
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidSettings('models: write a list of mappings, as in [{"model": "owner/a"}, {"model": "owner/b"}]')
    variables = {field: name for field, name in ENVIRONMENT.items() if field != "model" or "models" not in args}
    models = tuple(parse_settings(AppSettings, shared | entry, variables) for entry in entries)
    return parse_settings(ApplicationSettings, {"models": models, **server}, {})
