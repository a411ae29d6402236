"""The JSON files that describe a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightx2v.errors import InvalidCheckpoint


def read_configuration(checkpoint: Path, name: str) -> dict[str, Any]:
    """The mapping in `checkpoint / name`. Raises InvalidCheckpoint, naming the file, if there is none."""
    path = checkpoint / name
    if not checkpoint.is_dir():
        raise InvalidCheckpoint(f"{checkpoint}: no such folder")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidCheckpoint(f"{path}: no such file; the checkpoint is incomplete") from error
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise InvalidCheckpoint(f"{path}: expected a JSON object")
    return values


def has_part(index: dict[str, Any], name: str) -> bool:
    """Whether a `model_index.json` names a class for a part; an optional one that is not there has two nulls."""
    return any(index.get(name) or ())


def require(values: dict[str, Any], key: str, file: Path) -> Any:
    """`values[key]`. Raises InvalidCheckpoint, naming `file`, if it is absent."""
    if key not in values:
        raise InvalidCheckpoint(f"{file}: the key {key!r} is missing")
    return values[key]
