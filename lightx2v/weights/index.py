"""The places of a checkpoint's tensors on disk, from the headers of its files. No weight is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.gguf_file import read_gguf
from lightx2v.weights.scales import with_scales
from lightx2v.weights.schemes import check_configuration, check_metadata
from lightx2v.weights.tensor_ref import Span, TensorRef

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

SHARD = r"(?:-\d+-of-\d+)?"
VARIANT = re.compile(rf"(.+?){SHARD}\.\w+{SHARD}")
"""The stem of a variant, or of one of its shards: that of the usual file, and a name."""


def read_index(*folders: Path) -> dict[str, TensorRef]:
    """All tensors of a component's folders, single file or sharded, or of files themselves, by name.

    Raises InvalidCheckpoint, naming the file, for a missing, truncated or inconsistent one, and for a tensor that two
    folders have.
    """
    refs: dict[str, TensorRef] = {}
    for folder in folders:
        check_configuration(folder)
        found = with_scales({name: ref for file in weight_files(folder) for name, ref in read_tensors(file).items()})
        if both := refs.keys() & found.keys():
            raise InvalidCheckpoint(f"{folder}: the tensor {min(both)} is in another folder of the same part too")
        refs |= found
    return refs


def weight_files(folder: Path) -> list[Path]:
    """The shards that `*.safetensors.index.json` lists, or the only weight file of the folder, safetensors or GGUF. A
    file is itself.

    Variants (`model.fp16.safetensors`) are not read beside the usual file (`model.safetensors`), but in its place.
    """
    if folder.is_file():
        return [folder]
    packed, stored = sorted(folder.glob("*.gguf")), sorted(folder.glob("*.safetensors"))
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes and not packed:
        return _shards(indexes[0])
    files = [*packed, *(file for file in stored if not _is_variant(file))]
    if len(files) == 1:
        return files
    variants = sorted(folder.glob("*.safetensors.index.*.json"))
    if len(variants) == 1 and not packed:
        return _shards(variants[0])
    names = ", ".join(file.name for file in (*indexes, *files)) or "none"
    raise InvalidCheckpoint(
        f"{folder}: expected one safetensors or GGUF file, or an index of safetensors shards; found {names}"
    )


def _is_variant(file: Path) -> bool:
    """Whether the usual file lies beside it."""
    match = VARIANT.fullmatch(file.stem)
    return match is not None and file.with_name(f"{match[1]}{file.suffix}").is_file()


def read_tensors(file: Path) -> dict[str, TensorRef]:
    """The tensors of one file, GGUF by its name or else safetensors."""
    return read_gguf(file) if file.suffix == ".gguf" else read_header(file)


def read_header(file: Path) -> dict[str, TensorRef]:
    """The tensors of one file. The library checks the header against the file; offsets are then read from it.

    The check is numpy's: torch's maps the file so that its bytes count as memory, and may refuse a large one.
    """
    if not file.is_file():
        raise InvalidCheckpoint(f"{file}: this weight file is missing; download the checkpoint again")
    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise InvalidCheckpoint(f"{file}: not a complete safetensors file ({error}); download it again") from error
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    check_metadata(str(file), header.get("__metadata__", {}).get("_quantization_metadata", "{}"))
    return {name: _ref(file, 8 + length, name, entry) for name, entry in header.items() if name != "__metadata__"}


def _ref(file: Path, start: int, name: str, entry: dict[str, Any]) -> TensorRef:
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise InvalidCheckpoint(f"{file}: tensor {name} has the unsupported type {entry['dtype']}")
    return TensorRef(file, (Span(start + begin, end - begin),), DTYPES[entry["dtype"]], tuple(entry["shape"]))


def _shards(index: Path) -> list[Path]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, OSError) as error:
        raise InvalidCheckpoint(f"{index}: not a readable index of shards ({error!r})") from error
    names = sorted(set(weight_map.values()))
    if bad := [name for name in names if Path(name).name != name]:
        raise InvalidCheckpoint(f"{index}: names a file outside its folder: {bad[0]!r}")
    return [index.parent / name for name in names]
