"""By how much a LoRA's products are scaled: by alpha / rank, wherever a file states its alpha."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lightx2v.errors import InvalidCheckpoint

CONFIGURATION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's two files; diffusers puts what is in the first into the header of the only one."""

HEADER, PART = "lora_adapter_metadata", "transformer."


class Alphas:
    """By how much the products of a file are scaled: alpha / rank; 1 where no alpha is stated."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stated = _stated(file)
        if self._stated.get("use_dora"):
            raise InvalidCheckpoint(f"{file}: use_dora: DoRA also changes the weights' norms, which is not supported")

    def scale(self, key: str | None, path: str, rank: int) -> float:
        """Of the layer at `path`, whose alpha is the tensor `key`, or among what is stated for the whole file."""
        alpha = self._for(path, rank) if key is None else self._read(key)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise InvalidCheckpoint(f"{self._file}: {key or path} has the alpha {alpha!r}, which is no number")
        return alpha / (math.sqrt(rank) if self._stated.get("use_rslora") else rank)

    def _for(self, path: str, rank: int) -> Any:
        patterns = self._stated.get("alpha_pattern") or {}
        stated = self._stated.get("lora_alpha")
        fitting = (alpha for name, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({name})", path))
        return next(fitting, rank if stated is None else stated)

    def _read(self, key: str) -> float:
        with safe_open(self._file, framework="pt") as tensors:
            alpha: torch.Tensor = tensors.get_tensor(key)
        return alpha.item() if alpha.numel() == 1 else math.nan


def _stated(file: Path) -> dict[str, Any]:
    """PEFT's configuration: from the header, where diffusers writes it, or from the file that PEFT writes."""
    with safe_open(file, framework="pt") as tensors:
        header = tensors.metadata() or {}
    beside = file.parent / CONFIGURATION
    try:
        if HEADER in header:
            stated = json.loads(header[HEADER]).items()
            return {key.removeprefix(PART): value for key, value in stated if key.startswith(PART)}
        if file.name == WEIGHTS and beside.exists():
            return dict(json.loads(beside.read_text(encoding="utf-8")))
    except (ValueError, AttributeError, OSError) as error:
        raise InvalidCheckpoint(f"{file}: its LoRA configuration cannot be read ({error})") from error
    return {}
