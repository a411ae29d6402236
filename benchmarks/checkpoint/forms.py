"""Quantised forms of a written checkpoint: the matrices in its blocks become random numbers in fp8 with scales, or
packed. As many bytes are stored as in files that people have."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from safetensors import safe_open
from safetensors.torch import save_file

from lightx2v.weights.index import read_index, weight_files
from lightx2v.weights.tensor_ref import TensorRef

PARTS = ("text_encoder", "transformer")
MATRIX = re.compile(r"(.+\.)?(\w*blocks|layers|\w+_refiner)\.\d+\..+\.weight")
CODES = 4_194_301
BLOCKS = 29_131
"""How many random values are drawn. Both are primes, and every tensor is a repetition of them."""

E4M3_SPREAD = 64.0
Q4_K_SPREAD = 257.0
"""The standard deviations of the numbers before they are scaled."""

Matrices = Mapping[str, TensorRef]
Others = Mapping[str, torch.Tensor]


def write_form(checkpoint: Path, form: str) -> None:
    """Replaces the weight files of text encoder and transformer by those in `form`, one of `FORMS`."""
    for part in PARTS:
        folder = checkpoint / part
        index, files = read_index(folder), weight_files(folder)
        matrices = {name: ref for name, ref in index.items() if MATRIX.fullmatch(name) and _fits(ref)}
        FORMS[form](folder, matrices, {name: _tensor(name, index[name]) for name in index.keys() - matrices.keys()})
        for file in (*files, *folder.glob("*.index.json")):
            file.unlink()


def write_fp8_scaled(folder: Path, matrices: Matrices, others: Others) -> None:
    """As ComfyUI's files: e4m3 with a scale for each tensor."""
    noise = (torch.randn(CODES, generator=torch.Generator().manual_seed(0)) * E4M3_SPREAD).to(torch.float8_e4m3fn)
    stored = dict(others)
    for name, ref in matrices.items():
        numbers = math.prod(ref.shape)
        codes = noise.view(torch.uint8).repeat(math.ceil(numbers / CODES))[:numbers]
        stored[name] = codes.view(torch.float8_e4m3fn).view(ref.shape)
        stored[f"{name}_scale"] = torch.tensor(1 / (E4M3_SPREAD * math.sqrt(ref.shape[1])))
    save_file(stored, folder / "fp8_scaled.safetensors")


def write_q4_k(folder: Path, matrices: Matrices, others: Others) -> None:
    """A GGUF file of Q4_K, the rest in bf16."""
    writer = GGUFWriter(folder / "q4_k.gguf", "flux")
    for name, tensor in others.items():
        writer.add_tensor(name, tensor.view(torch.uint8).numpy(), raw_dtype=GGMLQuantizationType.BF16)
    for name, ref in matrices.items():
        writer.add_tensor(name, _q4_k(*ref.shape), raw_dtype=GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _q4_k(rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """uint8 [rows, bytes of a row]. Of a block's two factors, the second makes the numbers' mean zero."""
    numbers, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType.Q4_K]
    blocks = np.random.default_rng(0).integers(0, 256, (BLOCKS, nbytes), dtype=np.uint8)
    factor = 1 / (Q4_K_SPREAD * math.sqrt(columns))
    blocks[:, :4] = np.array([factor, 7.5 * factor], dtype=np.float16).view(np.uint8)
    return np.resize(blocks, (rows, columns // numbers * nbytes))


def _fits(ref: TensorRef) -> bool:
    return len(ref.shape) == 2 and ref.shape[1] % GGML_QUANT_SIZES[GGMLQuantizationType.Q4_K][0] == 0


def _tensor(name: str, ref: TensorRef) -> torch.Tensor:
    with safe_open(ref.file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


FORMS: Mapping[str, Callable[[Path, Matrices, Others], None]] = {"fp8-scaled": write_fp8_scaled, "q4_k": write_q4_k}
