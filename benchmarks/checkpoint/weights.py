"""Random weights as safetensors files, as fast as the disk takes them.

Speed and memory do not depend on what the weights are; activations stay finite.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

SHARD_NBYTES = 5_000_000_000
NOISE_VALUES = 4_194_301
"""So many random values are drawn once, a prime, and every tensor is cut from them, at an offset of its own."""

States = Mapping[str, torch.Tensor]
"""Tensors without data, by the checkpoint's names."""


def write_weights(parts: Mapping[Path, States], shard_nbytes: int = SHARD_NBYTES) -> None:
    """The weights of each folder in bf16, in files of at most about `shard_nbytes`, several at a time."""
    with ThreadPoolExecutor() as pool:
        written = [future for folder, states in parts.items() for future in _write(pool, folder, states, shard_nbytes)]
    for future in written:
        future.result()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")


def _write(pool: ThreadPoolExecutor, folder: Path, states: States, shard_nbytes: int) -> list[Future[None]]:
    stem = "model" if folder.name == "text_encoder" else "diffusion_pytorch_model"
    shards = list(_split(states, shard_nbytes))
    if len(shards) == 1:
        return [pool.submit(_write_file, folder / f"{stem}.safetensors", shards[0])]
    files = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": sum(map(_nbytes, states.values()))}, "weight_map": weight_map}
    write_json(folder / f"{stem}.safetensors.index.json", index)
    return [pool.submit(_write_file, folder / file, shard) for file, shard in zip(files, shards, strict=True)]


def _split(states: States, shard_nbytes: int) -> Iterator[States]:
    shard: dict[str, torch.Tensor] = {}
    filled = 0
    for name, meta in states.items():
        if shard and filled + _nbytes(meta) > shard_nbytes:
            yield shard
            shard, filled = {}, 0
        shard[name] = meta
        filled += _nbytes(meta)
    yield shard


def _write_file(path: Path, states: States) -> None:
    header, offset = {}, 0
    for name, meta in states.items():
        dtype = "BF16" if meta.is_floating_point() else "I64"
        header[name] = {"dtype": dtype, "shape": list(meta.shape), "data_offsets": [offset, offset + _nbytes(meta)]}
        offset += _nbytes(meta)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, (name, meta) in enumerate(states.items()):
            for piece in _values(name, meta, start=number * 7919):
                file.write(piece)


def _values(name: str, meta: torch.Tensor, start: int) -> Iterator[memoryview]:
    """The bytes of one tensor, in pieces of a buffer that is shared by all: noise, or a constant."""
    source = _source(name, meta)
    left, offset = _nbytes(meta), 2 * start % source.nbytes if _fan_in(meta) > 1 else 0
    while left:
        piece = source[offset : offset + left]
        yield piece
        left, offset = left - piece.nbytes, 0


def _source(name: str, meta: torch.Tensor) -> memoryview:
    """What has one value per output is a norm's, a bias or a statistic: one or zero."""
    if not meta.is_floating_point():
        return memoryview(bytes(_nbytes(meta)))
    if _fan_in(meta) > 1:
        return _noise(1 / math.sqrt(_fan_in(meta)))
    return _bytes(torch.full((meta.numel(),), float(name.endswith(("weight", "gamma", "running_var")))))


def _fan_in(meta: torch.Tensor) -> int:
    return math.prod(meta.shape[1:])


@cache
def _noise(scale: float) -> memoryview:
    return _bytes(_unit_noise() * scale)


@cache
def _unit_noise() -> torch.Tensor:
    return torch.randn(NOISE_VALUES, generator=torch.Generator().manual_seed(0))


def _bytes(values: torch.Tensor) -> memoryview:
    return values.to(torch.bfloat16).view(torch.uint8).numpy().data


def _nbytes(meta: torch.Tensor) -> int:
    return meta.numel() * (2 if meta.is_floating_point() else 8)
