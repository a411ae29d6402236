"""Checkpoints whose matrices in blocks are quantised, each beside one with the same numbers in fp32, multiplied out
here."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

from tests.checkpoints.packed import Bytes, random_blocks, write_gguf

PARTS = ("text_encoder", "transformer")
MATRIX = re.compile(r"(.*\.)?(transformer_blocks|layers)\.\d+\..*\.weight")
E4M3 = torch.float8_e4m3fn

States = dict[str, torch.Tensor]
Stored = tuple[States, torch.Tensor]
"""What a file holds of a matrix, by the last part of the name, and the numbers that it stands for."""


def per_tensor(matrix: torch.Tensor) -> Stored:
    """As in ComfyUI's `*_fp8_scaled` files."""
    scale = matrix.abs().max() / 448
    codes = (matrix / scale).to(E4M3)
    return {"weight": codes, "scale_weight": scale, "scale_input": torch.ones(())}, codes.float() * scale


def per_row(matrix: torch.Tensor) -> Stored:
    """As ComfyUI describes layer by layer."""
    scale = matrix.abs().amax(dim=1, keepdim=True) / 448
    codes = (matrix / scale).to(E4M3)
    described = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    return {"weight": codes, "weight_scale": scale, "comfy_quant": described}, codes.float() * scale


def per_tile(matrix: torch.Tensor) -> Stored:
    """As in DeepSeek's files, in tiles of 128 x 128."""
    rows, columns = matrix.shape
    scale = torch.rand(-(-rows // 128), -(-columns // 128)) * 0.001 + 0.001
    spread = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    codes = (matrix / spread).to(E4M3)
    return {"weight": codes, "weight_scale_inv": scale}, codes.float() * spread


def int8(matrix: torch.Tensor) -> Stored:
    scale = matrix.abs().amax(dim=1) / 127
    codes = (matrix / scale[:, None]).round().to(torch.int8)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale[:, None]


FORMS: Mapping[str, Callable[[torch.Tensor], Stored]] = {
    "per_tensor": per_tensor,
    "per_row": per_row,
    "per_tile": per_tile,
    "int8": int8,
}


def write_scaled(checkpoint: Path, folder: Path, form: str) -> tuple[Path, Path]:
    """The checkpoint in one of `FORMS`, and the same in fp32."""
    stored_at, by_hand = _copies(checkpoint, folder)
    for part in PARTS:
        (file,) = (checkpoint / part).glob("*.safetensors")
        stored: States = {"scaled_fp8": torch.zeros(2, dtype=E4M3)}
        exact: States = {}
        for name, tensor in load_file(file).items():
            held, numbers = FORMS[form](tensor) if _is_matrix(name, tensor) else ({"weight": tensor}, tensor)
            stem = name.removesuffix("weight") if _is_matrix(name, tensor) else ""
            stored |= {f"{stem}{last}" if stem else name: value for last, value in held.items()}
            exact[name] = numbers
        save_file(stored, stored_at / part / file.name)
        save_file(exact, by_hand / part / file.name)
    return stored_at, by_hand


def write_packed(checkpoint: Path, folder: Path) -> tuple[Path, Path]:
    """The checkpoint as GGUF files, and the same in fp32. Types are mixed, as those of K_M files are."""
    stored_at, by_hand = _copies(checkpoint, folder)
    for part in PARTS:
        (file,) = (checkpoint / part).glob("*.safetensors")
        states = load_file(file)
        packed = {name: _packed(name, tensor) for name, tensor in states.items() if tensor.ndim == 2}
        plain = {name: tensor.numpy() for name, tensor in states.items() if name not in packed}
        write_gguf(stored_at / part / f"{part}-Q4_K_M.gguf", packed, plain)
        numbers = {name: _by_gguf(kind, blocks) for name, (kind, blocks) in packed.items()}
        save_file(states | numbers, by_hand / part / file.name)
    return stored_at, by_hand


def _copies(checkpoint: Path, folder: Path) -> tuple[Path, Path]:
    """Two copies without the weights of `PARTS`."""
    copies = folder / "stored", folder / "by_hand"
    for copy in copies:
        shutil.copytree(checkpoint, copy)
        for part in PARTS:
            for file in (copy / part).glob("*.safetensors"):
                file.unlink()
    return copies


def _is_matrix(name: str, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and MATRIX.fullmatch(name) is not None


def _packed(name: str, tensor: torch.Tensor) -> tuple[str, Bytes]:
    """Quantised if the package can, else random numbers of the same size."""
    rows, columns = tensor.shape
    if columns % 256 == 0:
        kind = ("Q4_K", "Q5_K", "Q6_K")[len(name) % 3]
        factor = tensor.abs().max().item() / 2**12
        return kind, random_blocks(kind, rows, columns, factor=factor)
    kind = ("Q8_0", "Q5_1", "Q4_0")[len(name) % 3]
    return kind, quantize(tensor.numpy(), GGMLQuantizationType[kind])


def _by_gguf(kind: str, blocks: Bytes) -> torch.Tensor:
    return torch.from_numpy(dequantize(blocks, GGMLQuantizationType[kind]))
