"""What an operator can set, understood and checked before anything is loaded. Upstream's keys keep their meaning."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lightx2v.errors import InvalidSettings
from lightx2v.types import Policy

BUNDLED_MODEL = Path(__file__).parent / "assets" / "flux2-shapes"
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}

ENVIRONMENT: Mapping[str, str] = {"model": "LIGHTX2V_MODEL", "gpu_budget": "LIGHTX2V_GPU_BUDGET"}

T = TypeVar("T", bound=BaseModel)
MOST_BYTES = 1 << 60
"""More than any device has."""

Granularity = Literal["model", "phase", "block"]


class Settings(BaseModel):
    """Frozen; an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: object) -> object:
        known = list(cls.model_fields)
        for key in values if isinstance(values, dict) else ():
            if key not in known:
                raise ValueError(f"unknown setting {key!r}{did_you_mean(key, known)}; known are {', '.join(known)}")
        return values


class EngineSettings(Settings):
    """One model and how its weights live. Shared by the command line and the server."""

    model: str = str(BUNDLED_MODEL)
    """A folder in the diffusers layout, or a hub id."""

    gpu_budget: int | None = None
    """Device bytes for all stages on a card together, "24GiB" or a number; absent: the whole card."""

    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU, where most compute bfloat16 thirty times slower, if at all."""

    fp8: bool = False
    """Keeps the linear layers in the blocks of text encoder and transformers in e4m3 with a scale per row: about half
    the bytes of bfloat16, and faster products on a GPU from compute capability 8.9 on. Pictures change a little."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: CUDA where there is one."""

    cpu_offload: bool | Literal["auto"] = "auto"
    """auto: keep what fits, stream the rest. False: all stays on the device. True: as `offload_granularity` says."""

    offload_granularity: Granularity = "block"
    """model: placed whole, dropped after the request. block, phase: streamed through, a block or a part of one at a
    time; only what lies outside the blocks stays for the request."""

    lazy_load: bool = False
    """No host copy: weights are read from disk at every use. Needs `cpu_offload: true`."""

    conditioning_cache: int = Field(default=256 << 20, ge=0)
    """Host bytes for what the encoder made of the latest prompts; one that comes again is not encoded again."""

    compile: bool | Literal["auto"] = "auto"
    """Whether blocks are compiled when they are first used. auto: on a GPU, unless they stream part by part."""

    loras: dict[str, str] = Field(default_factory=dict)
    """By the name that a request chooses it with: a safetensors file, a folder or hub id with one, or a file in a hub
    repository, `owner/repository/file.safetensors`. On the command line `name=path,name=path`."""

    @property
    def by_phase(self) -> bool:
        """Whether the parts of a block come and go one by one."""
        return self.cpu_offload is True and self.offload_granularity == "phase"

    def precision(self, cuda: bool) -> str:
        """The name of the floating-point type on such a device."""
        usual = "bfloat16" if cuda else "float32"
        return usual if self.dtype == "auto" else self.dtype

    def compiles(self, cuda: bool) -> bool:
        """Whether blocks are compiled on such a device."""
        return cuda and not self.by_phase if self.compile == "auto" else self.compile

    @property
    def policy(self) -> Policy:
        """How the weights live: by the plan, all resident, whole for a request, or streamed."""
        if self.cpu_offload == "auto":
            return "auto"
        if self.cpu_offload is False:
            return "whole"
        return "model" if self.offload_granularity == "model" else "streamed"

    @field_validator("gpu_budget", "conditioning_cache", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError("must be a size, for example 24GiB")
        return parse_bytes(value) if isinstance(value, str) else value

    @field_validator("loras", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return parse_names(value) if isinstance(value, str) else value

    @field_validator("loras")
    @classmethod
    def _nothing_empty(cls, value: dict[str, str]) -> dict[str, str]:
        if not all(name.strip() and path.strip() for name, path in value.items()):
            raise ValueError("neither a name nor a path may be empty")
        return value

    @field_validator("gpu_budget")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value is not None and value <= 0:
            raise ValueError("must be positive")
        return value

    @model_validator(mode="after")
    def _lazy_load_needs_offload(self) -> EngineSettings:
        if self.lazy_load and self.cpu_offload is not True:
            raise ValueError("lazy_load needs cpu_offload: true (without it the weights would be read once and stay)")
        return self

    @model_validator(mode="after")
    def _phases_are_not_compiled(self) -> EngineSettings:
        if self.compile is True and self.by_phase:
            raise ValueError("compile: true needs whole blocks; leave it out, or set offload_granularity: block")
        return self


def parse_settings(kind: type[T], values: dict[str, Any], environment: Mapping[str, str] = ENVIRONMENT) -> T:
    """Settings of `kind`; where the `environment` has a variable for a field, it overrides the value.

    Raises InvalidSettings, which says what is wrong in one sentence.
    """
    named = {field: os.environ.get(variable, "") for field, variable in environment.items()}
    try:
        return kind.model_validate({**values, **{field: value for field, value in named.items() if value}})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise InvalidSettings(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error


def parse_bytes(text: str) -> int:
    """'24GiB', '31.35 GiB', '500MB', '1024' as bytes. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    nbytes = float(match[1]) * UNITS.get(match[2].upper(), math.nan) if match else math.nan
    if not nbytes < MOST_BYTES:
        raise ValueError(f"{text!r} is not a size; write for example 24GiB, 500MB or a number of bytes")
    return int(nbytes)


def parse_names(text: str) -> dict[str, str]:
    """'sketch=a.safetensors,oil=b.safetensors' by name. Raises ValueError."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"{text!r} is not understood; write name=path, or name=path,name=path")
    return {name.strip(): path.strip() for name, _, path in pairs}


def did_you_mean(key: str, known: list[str]) -> str:
    """A hint with the nearest known key, or nothing."""
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
