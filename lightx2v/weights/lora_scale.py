"""The factor of a LoRA's product: alpha / rank, wherever a file states its alpha."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic_core import from_json
from safetensors import safe_open

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.read import read_stored
from lightx2v.weights.tensor_ref import TensorRef

CONFIGURATION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The two files that PEFT writes. diffusers writes one file, with the configuration in its header."""

HEADER, PREFIX = "lora_adapter_metadata", "transformer."
"""The header's key for diffusers' configuration, and the beginning of the names in it that concern the transformer."""


def _compile_path(pattern: str) -> re.Pattern[str]:
    """A layer's path, or its last parts. Raises ValueError if it is no regular expression."""
    try:
        return re.compile(rf"(.*\.)?({pattern})")
    except (re.error, OverflowError, RecursionError, TypeError) as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from error


class LoraConfiguration(BaseModel):
    """The fields of PEFT's `LoraConfig` that decide on the scale; all others are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    lora_alpha: FiniteFloat | None = None
    alpha: FiniteFloat | None = None
    """The alpha of LoKr and LoHa."""
    r: Annotated[int, Field(gt=0)] | None = None
    alpha_pattern: dict[Annotated[re.Pattern[str], BeforeValidator(_compile_path)], FiniteFloat] | None = None
    """Alphas of single layers, by path; the first that fits counts."""
    use_rslora: bool | None = None
    """Whether products are scaled by alpha / sqrt(rank)."""
    use_dora: bool | None = None

    def alpha_of(self, path: str) -> float | None:
        """The alpha of the layer at `path`, if one is stated."""
        fitting = (alpha for pattern, alpha in (self.alpha_pattern or {}).items() if pattern.fullmatch(path))
        return next(fitting, self.alpha if self.lora_alpha is None else self.lora_alpha)


def read_configuration(file: Path) -> LoraConfiguration:
    """The configuration of a LoRA file: from its header as diffusers writes it, or from the file that PEFT writes
    beside it. Raises InvalidCheckpoint, naming `file`, if it cannot be read."""
    try:
        return LoraConfiguration.model_validate(_stated(file))
    except (ValueError, OSError) as error:
        raise InvalidCheckpoint(f"{file}: its LoRA configuration cannot be read ({_reason(error)})") from error


def lora_scale(configuration: LoraConfiguration, alpha: float | None, path: str, rank: int | None) -> float:
    """The factor for the layer at `path`: 1 where no alpha is stated. `alpha`: the layer's own, which overrides the
    configuration. `rank`: None for a product of whole matrices, which only PEFT scales."""
    if rank is None:
        rank = configuration.r if alpha is None else None
        if rank is None:
            return 1.0
    if alpha is None:
        alpha = configuration.alpha_of(path)
    return (rank if alpha is None else alpha) / (math.sqrt(rank) if configuration.use_rslora else rank)


def read_alpha(key: str, ref: TensorRef) -> float:
    """The alpha in the tensor `key`. Raises InvalidCheckpoint if it is no finite number."""
    stored = read_stored(ref)
    alpha = stored.item() if stored.numel() == 1 else math.nan
    if isinstance(alpha, bool) or not math.isfinite(alpha):
        raise InvalidCheckpoint(f"{ref.file}: {key} has the alpha {alpha!r}, which is no number")
    return alpha


def _stated(file: Path) -> Any:
    with safe_open(file, framework="pt") as tensors:
        header = tensors.metadata() or {}
    beside = file.parent / CONFIGURATION
    if HEADER in header:
        stated = from_json(header[HEADER])
        if not isinstance(stated, dict):
            raise ValueError(f"{HEADER} is no object")
        return {key.removeprefix(PREFIX): value for key, value in stated.items() if key.startswith(PREFIX)}
    return from_json(beside.read_bytes()) if file.name == WEIGHTS and beside.exists() else {}


def _reason(error: ValueError | OSError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
