"""The JSON files that describe a checkpoint."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightx2v.errors import InvalidCheckpoint

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

D = TypeVar("D", bound="DataclassInstance")


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
    """Whether a `model_index.json` names a class for a part. An optional part that is absent has two nulls there."""
    return any(index.get(name) or ())


def require(values: dict[str, Any], key: str, file: Path) -> Any:
    """`values[key]`. Raises InvalidCheckpoint, naming `file`, if it is absent."""
    if key not in values:
        raise InvalidCheckpoint(f"{file}: the key {key!r} is missing")
    return values[key]


def read_fields(cls: type[D], checkpoint: Path, name: str, **defaults: Any) -> D:
    """An instance of the dataclass `cls`: each field is the key of its name in `checkpoint / name`, or else in
    `defaults`.

    Raises InvalidCheckpoint, naming the file, for a key that is in neither.
    """
    values = defaults | read_configuration(checkpoint, name)
    return cls(**{field.name: require(values, field.name, checkpoint / name) for field in fields(cls)})
