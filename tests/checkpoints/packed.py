"""Random packed weights, and GGUF files of them, written by the `gguf` package. No quantiser is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

HALVES: Mapping[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""Where the fp16 factors of a block begin. All other bytes may be anything."""

Bytes = npt.NDArray[np.uint8]


def random_blocks(name: str, rows: int, columns: int, seed: int = 0, factor: float = 0.01) -> Bytes:
    """uint8 [rows, bytes of a row]: packed numbers, of blocks with factors up to `factor`."""
    numbers, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (rows * columns // numbers, nbytes), dtype=np.uint8)
    for start in HALVES[name]:
        factors = generator.uniform(0.1 * factor, factor, len(blocks)).astype(np.float16)
        blocks[:, start : start + 2] = factors.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def write_gguf(
    file: Path,
    packed: Mapping[str, tuple[str, Bytes]],
    plain: Mapping[str, npt.NDArray[np.generic]],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """`packed`: the type of each tensor and its bytes. `shapes`: those that the file keeps beside a tensor."""
    writer = GGUFWriter(file, "flux")
    for name, shape in (shapes or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
    for name, (kind, blocks) in packed.items():
        writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType[kind])
    for name, values in plain.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
