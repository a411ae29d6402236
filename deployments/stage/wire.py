"""Packs tensors for other processes, as byte views in numpy arrays, which Ray shares without copying.

A torch bfloat16 tensor of 10 MB takes about 50 ms from replica to replica, its byte view 11 ms (measured on 2 cores).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from deployments.tensor_bytes import TensorBytes


def pack(value: Any) -> Any:
    """A copy of `value` with TensorBytes for every host tensor, also inside dataclasses and tuples."""
    if isinstance(value, torch.Tensor):
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        return TensorBytes(data, str(value.dtype).removeprefix("torch."), tuple(value.shape))
    return _rebuilt(value, pack)


def unpack(value: Any) -> Any:
    """The inverse of `pack`. The data is copied, because Ray's shared memory is read-only."""
    if isinstance(value, TensorBytes):
        return torch.from_numpy(value.data.copy()).view(getattr(torch, value.dtype)).view(value.shape)
    return _rebuilt(value, unpack)


def _rebuilt(value: Any, convert: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(convert(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type | TensorBytes):
        return dataclasses.replace(
            value, **{f.name: convert(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value
