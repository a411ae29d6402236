"""Tensors between processes: as integer views of numpy arrays, which Ray shares without copying.

A torch bfloat16 tensor of 10 MB costs about 50 ms from replica to replica, its view 11 (measured on 2 cores).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from deployments.packed import Packed


def pack(value: Any) -> Any:
    """A copy of `value` in which every host tensor is Packed, also inside dataclasses and tuples."""
    if isinstance(value, torch.Tensor):
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        return Packed(data, str(value.dtype).removeprefix("torch."), tuple(value.shape))
    return _rebuilt(value, pack)


def unpack(value: Any) -> Any:
    """The inverse of `pack`. The data is copied, because what Ray shares is read-only."""
    if isinstance(value, Packed):
        return torch.from_numpy(value.data.copy()).view(getattr(torch, value.dtype)).view(value.shape)
    return _rebuilt(value, unpack)


def _rebuilt(value: Any, convert: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(convert(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Packed):
        return dataclasses.replace(
            value, **{f.name: convert(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value
