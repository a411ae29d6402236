"""The scales that a file of 8-bit weights keeps beside them.

The names are those of ComfyUI, of transformers (and so DeepSeek) and of LightX2V.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.schemes import check_names
from lightx2v.weights.tensor_ref import Scale, TensorRef

SCALES = ("scale_weight", "weight_scale", "weight_scale_inv", "scale")
"""The last parts of a scale's name, beside `weight`. The last of them is a scale only if the weight has 8 bits. All of
them are factors: the inverse in `weight_scale_inv` is that of the factor which the quantiser applied."""

SILENT = ("scale_input", "input_scale", "comfy_quant", "scaled_fp8")
"""The last parts of names that no weight depends on. Inputs are rounded token by token here, without a stored scale."""

BITS_8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
FACTORS = (torch.float32, torch.float16, torch.bfloat16)
USUAL_TILE = 128


def with_scales(refs: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """The tensors of `refs`, all of a part, with their scales instead of beside them.

    Raises InvalidCheckpoint for a scheme that is not understood, and for a scale that fits no weight.
    """
    check_names(refs)
    found = {name: ref for name, ref in refs.items() if not _is_silent(name)}
    for name, ref in refs.items():
        stem, _, last = name.rpartition(".")
        weight = f"{stem}.weight"
        if last in SCALES and (last != "scale" or (weight in refs and refs[weight].dtype in BITS_8)):
            if weight not in found or found[weight].is_scaled:
                raise InvalidCheckpoint(f"{ref.file}: {name} is the scale of no weight, or a second one")
            found[weight] = _scaled(weight, found[weight], name, found.pop(name))
    return found


def _is_silent(name: str) -> bool:
    return name.rpartition(".")[2] in SILENT


def _scaled(name: str, weight: TensorRef, scale_name: str, scale: TensorRef) -> TensorRef:
    """`weight` with `scale`: a factor for all of it, for each row, or for each tile."""
    count = math.prod(scale.shape)
    rows, columns = _grid(scale.shape, count)
    (span,) = weight.spans
    height, width = _tile(weight.shape[0], rows), _tile(math.prod(weight.row_shape), columns)
    if rows * columns != count or not height or not width:
        raise InvalidCheckpoint(
            f"{scale.file}: {scale_name} has shape {list(scale.shape)}, {name} {list(weight.shape)}"
        )
    if scale.dtype not in FACTORS or not (weight.dtype.is_floating_point or weight.dtype == torch.int8):
        raise InvalidCheckpoint(
            f"{scale.file}: {name} holds {weight.dtype} and its scale {scale.dtype}; supported are fp8 and int8 with "
            "scales in fp32, fp16 or bf16"
        )
    factors = Scale(replace(scale, shape=(rows, columns)), height, width)
    return replace(weight, spans=(replace(span, scale=factors),))


def _grid(shape: tuple[int, ...], count: int) -> tuple[int, int]:
    """The numbers of tiles along both sides."""
    if count == 1:
        return 1, 1
    return (shape[0], 1) if len(shape) == 1 else (shape[0], shape[1])


def _tile(length: int, tiles: int) -> int:
    """How long each of `tiles` in `length` is; 0 if that cannot be told. Tiles are DeepSeek's, of 128, if those fit."""
    if tiles == 1:
        return length
    if tiles == math.ceil(length / USUAL_TILE):
        return USUAL_TILE
    return length // tiles if tiles and length % tiles == 0 else 0
