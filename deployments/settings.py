"""The settings of an application: the `args` of its configuration file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os.path import abspath, expanduser
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from lightx2v.config import ENVIRONMENT, EngineSettings, Settings, parse_bytes, parse_settings
from lightx2v.errors import InvalidSettings
from lightx2v.limits import Limits, SizePolicy
from lightx2v.types import StageName


class Fractions(Settings):
    """The fraction of a card for one replica of each stage. The models of one application divide them."""

    encode: float = Field(default=0.2, gt=0, le=1)
    denoise: float = Field(default=0.6, gt=0, le=1)
    refine: float | None = Field(default=None, gt=0, le=1)
    """Absent: a model that has this stage halves `denoise` between the two."""
    decode: float = Field(default=0.2, gt=0, le=1)

    def of(self, stages: Sequence[StageName]) -> dict[StageName, float]:
        """The fraction of each stage of a model."""
        denoise, refine = self.denoise, self.refine
        if "refine" in stages and refine is None:
            denoise = refine = denoise / 2
        fractions = {"encode": self.encode, "denoise": denoise, "refine": refine or 0.0, "decode": self.decode}
        return {stage: fractions[stage] for stage in stages}

    def sets_per_card(self, stages: Sequence[StageName]) -> int:
        """How many replicas of each stage fit on a card; one more of a stage would leave another without a place."""
        return max(1, int(1 / sum(self.of(stages).values()) + 1e-9))


class ModelSettings(EngineSettings):
    """The settings of one model that an application serves."""

    name: str | None = None
    """The model's id in the API; absent: the last part of `model`. The whole of a hub id names the model too."""

    aliases: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = ()
    """Further names under which requests may ask for the model, such as "gpt-image-1"."""

    gpu_fractions: Fractions = Fractions()
    """Ray's bookkeeping of which replicas share a card. Above 0.5, two replicas of a stage never do."""

    max_replicas: int = Field(default=4, ge=1)
    """The most replicas of each stage; the cards may have room for fewer."""

    depth_per_replica: float = Field(default=2.0, gt=0)
    """Requests, waiting or running, for each replica of a stage."""

    upscale_delay_seconds: float = Field(default=2.0, ge=0)
    downscale_delay_seconds: float = Field(default=15.0, ge=0)

    max_queue: int = Field(default=64, ge=1)
    """The most requests that wait or run, which bounds memory; one more is answered 503 at once."""

    request_timeout_seconds: float = Field(default=300.0, gt=0)

    size_policy: SizePolicy = "exact"
    """exact: a size that the model cannot make is refused. nearest: the nearest is made, and the answer names it."""

    @property
    def model_id(self) -> str:
        return self.name or Path(self.hub_id or abspath(expanduser(self.model))).name

    @property
    def hub_id(self) -> str | None:
        """The `owner/name` of a model from the hub, or of a snapshot in the hub's cache, whose folder is named by a
        hash; None for another folder."""
        parts = Path(abspath(expanduser(self.model))).parts
        if len(parts) > 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
            return parts[-3].removeprefix("models--").replace("--", "/")
        return self.model if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.model) else None


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
    """The settings of an application's HTTP side."""

    allowed_hosts: tuple[HostName, ...] = ()
    """`Host` names that a connection over loopback may ask for, besides loopback's own: those of a reverse proxy."""

    allowed_origins: tuple[Origin, ...] = ()
    """Origins of other sites whose pages may ask for work, as browsers spell them: "https://example.com"."""

    max_json_bytes: int = Field(default=1 << 20, ge=1 << 10, le=1 << 30)
    """The most bytes of a body that has no pictures. The default holds two of the longest prompts in \\uXXXX pairs."""

    max_upload_bytes: int = Field(default=32 << 20, ge=1 << 10, le=1 << 30)
    """The most bytes of a body that may have pictures, a form or JSON; a number, or a text such as "32MiB"."""

    max_references: int = Field(default=Limits().max_references, ge=1, le=64)
    """The most reference pictures of one request; a model may take fewer."""

    max_priority: int = Field(default=10, ge=-10, le=10)
    """The highest `priority` that a request may ask for; the lowest is -10."""

    keys_file: Path | None = None
    """A file with the hashes of the callers' API keys, on the node of the ingress. Absent: nobody needs a key."""

    allow_without_keys: bool = False
    """Serve other machines also without keys, because a gateway or the network keeps strangers away."""

    @field_validator("max_json_bytes", "max_upload_bytes", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        return parse_bytes(value) if isinstance(value, str) else value


class ApplicationSettings(Settings):
    """All settings of an application: those of its models and of its HTTP side."""

    server: ServerSettings = ServerSettings()
    models: tuple[ModelSettings, ...]

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        names = [name for model in models for name in (model.model_id, *model.aliases)]
        for twice in {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two are called {twice!r}; give one of them another `name`, or other `aliases`")
        return models

    @property
    def max_queue(self) -> int:
        """The most requests that wait or run, over all models."""
        return sum(model.max_queue for model in self.models)

    @property
    def request_timeout_seconds(self) -> float:
        """The longest request timeout of any model."""
        return max(model.request_timeout_seconds for model in self.models)


def parse_application(args: dict[str, Any]) -> ApplicationSettings:
    """The settings in `args`. `server` is for the HTTP side. The other keys are for the one model, or they are defaults
    for the entries of `args["models"]`.

    Raises InvalidSettings, also if two models have the same id.
    """
    server = {key: value for key, value in args.items() if key == "server"}
    shared = {key: value for key, value in args.items() if key not in ("models", "server")}
    entries = args.get("models", [{}])
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidSettings('models: write a list of mappings, as in [{"model": "owner/a"}, {"model": "owner/b"}]')
    variables = {field: name for field, name in ENVIRONMENT.items() if field != "model" or "models" not in args}
    models = tuple(parse_settings(ModelSettings, shared | entry, variables) for entry in entries)
    return parse_settings(ApplicationSettings, {"models": models, **server}, {})
