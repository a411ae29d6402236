"""The settings of the engine, parsed and checked before anything is loaded. Upstream's keys keep their meaning."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from lightx2v.errors import InvalidSettings
from lightx2v.types import Policy

BUNDLED_MODEL = Path(__file__).parent / "assets" / "flux2-shapes"
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}

ENVIRONMENT: Mapping[str, str] = {"model": "LIGHTX2V_MODEL", "gpu_budget": "LIGHTX2V_GPU_BUDGET"}

PARTS = ("transformer", "transformer_2", "text_encoder", "image_encoder", "vae")
"""The folders of a model with weights, each of which a setting can replace."""

T = TypeVar("T", bound=BaseModel)
MOST_BYTES = 1 << 60
"""More than any device has."""

Granularity = Literal["model", "phase", "block"]


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("neither a name nor a path may be empty")
    return text


class Settings(BaseModel):
    """Base of all settings. It is frozen, and an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: object) -> object:
        known = list(cls.model_fields)
        for key in values if isinstance(values, dict) else ():
            if key not in known:
                raise ValueError(f"unknown setting {key!r}{did_you_mean(key, known)}; known are {', '.join(known)}")
        return values


class PathOrSettings(Settings):
    """Settings with a path. The path alone may stand for them."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value


class ExpertLora(PathOrSettings):
    """A LoRA of one of two transformers."""

    path: Annotated[str, AfterValidator(_not_empty)]
    """A safetensors file, a folder or hub id with one, or a file in a hub repository."""
    scale: FiniteFloat = 1.0
    """The factor of what it adds, beside the request's."""


class LoraSettings(PathOrSettings):
    """A LoRA, and what it was made for."""

    path: Annotated[str, AfterValidator(_not_empty)] | None = None
    scale: FiniteFloat = 1.0
    high: ExpertLora | None = None
    """What is added to the first of two transformers, that of high noise."""
    low: ExpertLora | None = None
    """What is added to the second."""
    steps: PositiveInt | None = None
    """The default of `num_inference_steps` in requests that choose it."""
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """The default of `guidance_scale`."""
    shift: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The default of `shift`."""

    @model_validator(mode="after")
    def _one_way(self) -> LoraSettings:
        if (self.path is None) == (self.high is None and self.low is None):
            raise ValueError("name one path, or high and low for a model of two transformers")
        return self


class EngineSettings(Settings):
    """The settings of one model and its weights, for the command line and the server alike."""

    model: str = str(BUNDLED_MODEL)
    """A folder in the diffusers layout, or a hub id."""

    transformer: str | None = None
    """The weights of this part, where they are not the model's own, in the names of the diffusers layout, of the
    model's makers or of ComfyUI: a file, a folder, or either in a hub repository (`owner/repository/file.safetensors`).
    """

    transformer_2: str | None = None
    text_encoder: str | None = None
    image_encoder: str | None = None
    vae: str | None = None

    gpu_budget: int | None = None
    """Device bytes for all stages on a card together, a number or "24GiB"; absent: the whole card."""

    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU. Most CPUs compute bfloat16 thirty times slower, if at all."""

    fp8: bool = False
    """Whether linear layers in the blocks of text encoder and transformers are kept in e4m3 with a scale per row. That
    is about half the bytes of bfloat16, with faster products, on GPUs of compute capability 8.9 or newer. Pictures
    change a little."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: CUDA if there is a GPU."""

    cpu_offload: bool | Literal["auto"] = "auto"
    """auto: keep what fits, stream the rest. False: all stays on the device. True: `offload_granularity` decides."""

    offload_granularity: Granularity = "block"
    """model: weights are placed whole and dropped after the request. block, phase: they stream, one block or one part
    of a block at a time; only weights outside the blocks stay for the request."""

    lazy_load: bool = False
    """Whether weights are read from disk at every use, without a host copy. Needs `cpu_offload: true`."""

    conditioning_cache: int = Field(default=256 << 20, ge=0)
    """Host bytes for the encodings of the latest prompts, so that a repeated prompt is not encoded again."""

    max_cohort: int = Field(default=8, ge=1, le=64)
    """The most requests that a stage runs together, so that streamed weights cross the link once for them. 1: one
    request after another. Pictures are the same to the bit."""

    compile: bool | Literal["auto"] = "auto"
    """Whether blocks are compiled at their first use. auto: on a GPU, unless they stream part by part."""

    loras: dict[Annotated[str, AfterValidator(_not_empty)], LoraSettings] = Field(default_factory=dict)
    """LoRAs by the name that requests use. Each is a safetensors file, a folder or hub id with one, or a file in a hub
    repository, `owner/repository/file.safetensors`; or an object with `path`, or `high` and `low`, and what it was made
    for. On the command line: `name=path,name=path`."""

    strict_loras: bool = False
    """Whether a LoRA that cannot be used refuses the start. Otherwise requests that name it are refused."""

    @property
    def parts(self) -> dict[str, str]:
        """The weights that are not the model's own, by the model's folder that they stand for."""
        given = {part: getattr(self, part) for part in PARTS}
        return {part: path for part, path in given.items() if path is not None}

    @property
    def by_phase(self) -> bool:
        """Whether the parts of a block stream one by one."""
        return self.cpu_offload is True and self.offload_granularity == "phase"

    def precision(self, cuda: bool) -> str:
        """The name of the floating-point type on a GPU (`cuda`) or a CPU."""
        usual = "bfloat16" if cuda else "float32"
        return usual if self.dtype == "auto" else self.dtype

    def compiles(self, cuda: bool) -> bool:
        """Whether blocks are compiled on a GPU (`cuda`) or a CPU."""
        return cuda and not self.by_phase if self.compile == "auto" else self.compile

    @property
    def policy(self) -> Policy:
        """The policy for the weights that follows from the settings of offload."""
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

    @field_validator(*PARTS)
    @classmethod
    def _named_place(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must name a file or a folder")
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
    """The settings in `values`. A variable that `environment` names for a field overrides the field's value.

    Raises InvalidSettings, which says in one sentence what is wrong.
    """
    named = {field: os.environ.get(variable, "") for field, variable in environment.items()}
    try:
        return kind.model_validate({**values, **{field: value for field, value in named.items() if value}})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise InvalidSettings(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error


def parse_bytes(text: str) -> int:
    """The bytes of a text such as '24GiB', '31.35 GiB', '500MB' or '1024'. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    nbytes = float(match[1]) * UNITS.get(match[2].upper(), math.nan) if match else math.nan
    if not nbytes < MOST_BYTES:
        raise ValueError(f"{text!r} is not a size; write for example 24GiB, 500MB or a number of bytes")
    return int(nbytes)


def parse_names(text: str) -> dict[str, str]:
    """The paths by name in a text such as 'sketch=a.safetensors,oil=b.safetensors'. Raises ValueError."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"{text!r} is not understood; write name=path, or name=path,name=path")
    return {name.strip(): path.strip() for name, _, path in pairs}


def did_you_mean(key: str, known: list[str]) -> str:
    """A hint with the nearest known key, or nothing."""
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
