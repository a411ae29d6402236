"""The places of tensors in a GGUF file, from its header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from gguf import GGUFReader, ReaderTensor

from lightx2v.errors import InvalidCheckpoint
from lightx2v.packing import PACKINGS, find_packing
from lightx2v.weights.tensor_ref import Span, TensorRef

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
}
"""The types that are no blocks."""

SHAPE = "comfy.gguf.orig_shape."
"""The prefix of the keys under which ComfyUI's converter keeps shapes that GGUF has no room for."""


def read_gguf(file: Path) -> dict[str, TensorRef]:
    """The tensors of `file` by name. Raises InvalidCheckpoint, naming it, if it is damaged, or of another byte order,
    or has a tensor of a type that is not supported."""
    try:
        reader = GGUFReader(file)
    except (ValueError, LookupError, OverflowError, OSError) as error:
        raise InvalidCheckpoint(f"{file}: not a complete GGUF file ({error}); download it again") from error
    if reader.byte_order == "S":
        raise InvalidCheckpoint(f"{file}: was written for machines of another byte order; convert it")
    return {tensor.name: _ref(file, tensor, _shape(reader, tensor)) for tensor in reader.tensors}


def _shape(reader: GGUFReader, tensor: ReaderTensor) -> tuple[int, ...]:
    """GGUF names the side first whose numbers lie side by side."""
    if (field := reader.get_field(f"{SHAPE}{tensor.name}")) is not None:
        return tuple(int(field.parts[index][0]) for index in field.data)
    return tuple(int(side) for side in reversed(tensor.shape))


def _ref(file: Path, tensor: ReaderTensor, shape: tuple[int, ...]) -> TensorRef:
    spans, kind = (Span(int(tensor.data_offset), int(tensor.n_bytes)),), tensor.tensor_type.name
    if kind in DTYPES:
        return TensorRef(file, spans, DTYPES[kind], shape)
    if kind not in PACKINGS:
        supported = ", ".join((*PACKINGS, "F32", "F16", "BF16"))
        raise InvalidCheckpoint(f"{file}: {tensor.name} has the type {kind}; supported are {supported}")
    return TensorRef(file, spans, torch.uint8, shape, find_packing(kind))
