"""8-bit weights with scales: against the same numbers dequantised by hand, and what is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.fp8 import keep_in_fp8
from lightx2v.weights.device import CpuDevice
from lightx2v.weights.host_copy import HostCopy, OnDisk
from lightx2v.weights.index import read_index
from lightx2v.weights.layout import Entry, make_layout, make_unit, view
from lightx2v.weights.read import ROWS, read_one
from lightx2v.weights.tensor_ref import TensorRef, joined
from lightx2v.weights.weight_residency import WeightResidency
from tests.unit.toy import WIDTH, Toy, write_toy

KEY = "layer.weight"
STORED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
SPELLINGS = ("scale_weight", "weight_scale", "weight_scale_inv", "scale")


def codes(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    numbers = torch.randint(-127, 128, shape)
    return numbers.to(dtype) if dtype == torch.int8 else (numbers * torch.exp2(torch.randint(-6, 2, shape))).to(dtype)


def by_hand(stored: torch.Tensor, scale: torch.Tensor) -> npt.NDArray[np.float32]:
    """Number by number: each has the factor of its tile."""
    matrix, factors = stored.float().numpy(), scale.float().numpy()
    factors = factors.reshape(1, 1) if factors.size == 1 else factors.reshape(factors.shape[0], -1)
    pairs = zip(matrix.shape, factors.shape, strict=True)
    rows, columns = (np.arange(n) // (1 if n == m else 128 if m == math.ceil(n / 128) else n) for n, m in pairs)
    product: npt.NDArray[np.float32] = matrix * factors[rows[:, None], columns]
    return product


def loaded(ref: TensorRef, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    unit = make_unit("unit", 0, [Entry("entry", ref, dtype)])
    return view(read_one(unit), unit.entries[0])


def scale_shapes(rows: int, columns: int) -> list[tuple[int, ...]]:
    tiles = (math.ceil(rows / 128), math.ceil(columns / 128))
    return [(), (1,), (1, 1), (rows,), (rows, 1), tiles]


@settings(max_examples=40)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    kind=st.integers(0, 5),
    dtype=st.sampled_from(STORED),
    factors=st.sampled_from((torch.float32, torch.bfloat16)),
    spelling=st.sampled_from(SPELLINGS),
)
def test_numbers_are_products(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    kind: int,
    dtype: torch.dtype,
    factors: torch.dtype,
    spelling: str,
) -> None:
    folder = tmp_path_factory.mktemp("scaled")
    stored, scale = codes(dtype, rows, columns), torch.rand(scale_shapes(rows, columns)[kind]).to(factors)
    save_file({KEY: stored, f"layer.{spelling}": scale, "layer.input_scale": torch.ones(())}, folder / "a.safetensors")
    index = read_index(folder)
    assert index.keys() == {KEY}
    expected = torch.from_numpy(by_hand(stored, scale))
    assert torch.equal(loaded(index[KEY]), expected)
    assert torch.equal(loaded(index[KEY], torch.bfloat16), expected.bfloat16())


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("dtype", STORED)
def test_rows_are_taken_with_their_scales(tmp_path: Path, kind: int, dtype: torch.dtype) -> None:
    """The last parts of a joined tensor have other scales than the first."""
    scale = torch.rand(scale_shapes(384, 130)[kind])
    stored = codes(dtype, 384, 130)
    save_file({KEY: stored, "layer.weight_scale": scale}, tmp_path / "a.safetensors")
    ref = read_index(tmp_path)[KEY]
    expected = torch.from_numpy(by_hand(stored, scale))
    assert torch.equal(loaded(ref.part(1, 3)), expected[128:256])
    assert torch.equal(loaded(ref.rows(128, 384).rows(0, 140)), expected[128:268])
    swapped = joined((ref.part(2, 3), ref.part(0, 3)))
    assert torch.equal(loaded(swapped), torch.cat((expected[256:], expected[:128])))
    across = ref.rows(100, 300).rows(50, 180)
    assert torch.equal(loaded(across), expected[150:280]), "tiles are cut"


def test_tensors_with_scales_of_their_own_are_joined(tmp_path: Path) -> None:
    """One for all of it, and one for each row."""
    first, second = codes(torch.int8, 4, 3), codes(torch.int8, ROWS + 5, 3)
    scales = torch.rand(()), torch.rand(ROWS + 5)
    names = {"a.weight": first, "a.weight_scale": scales[0], "b.weight": second, "b.weight_scale": scales[1]}
    save_file(names, tmp_path / "a.safetensors")
    index = read_index(tmp_path)
    expected = np.concatenate((by_hand(first, scales[0]), by_hand(second, scales[1])))
    assert torch.equal(loaded(joined((index["a.weight"], index["b.weight"]))), torch.from_numpy(expected))


def test_a_scale_may_be_in_another_file(tmp_path: Path) -> None:
    stored, scale = codes(torch.int8, 4, 3), torch.rand(4)
    save_file({KEY: stored}, tmp_path / "a.safetensors")
    save_file({"layer.weight_scale": scale}, tmp_path / "b.safetensors")
    weight_map = {KEY: "a.safetensors", "layer.weight_scale": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ref = read_index(tmp_path)[KEY]
    assert torch.equal(loaded(ref), torch.from_numpy(by_hand(stored, scale)))
    assert {file.name for file in ref.files} == {"a.safetensors", "b.safetensors"}


def test_fp8_without_a_scale_is_what_it_says(tmp_path: Path) -> None:
    stored = codes(torch.float8_e4m3fn, 4, 3)
    save_file({KEY: stored, "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    assert torch.equal(loaded(read_index(tmp_path)[KEY]), stored.float())


def comfy(**values: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("format", ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise"])
def test_formats_of_comfyui(tmp_path: Path, format: str) -> None:
    stored, scale = codes(getattr(torch, format.replace("_tensorwise", "")), 4, 3), torch.rand(())
    names = {KEY: stored, "layer.weight_scale": scale, "layer.comfy_quant": comfy(format=format)}
    layers = json.dumps({"layers": {"layer": {"format": format, "full_precision_matrix_mult": True}}})
    save_file(names, tmp_path / "a.safetensors", metadata={"_quantization_metadata": layers})
    index = read_index(tmp_path)
    assert index.keys() == {KEY}
    assert torch.equal(loaded(index[KEY]), torch.from_numpy(by_hand(stored, scale)))


UINT8, INT8, FP8 = (torch.zeros(4, 4, dtype=dtype) for dtype in (torch.uint8, torch.int8, torch.float8_e4m3fn))
ONE = torch.ones(())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({KEY: UINT8, "layer.comfy_quant": comfy(format="nvfp4")}, "layer is stored as nvfp4"),
        ({KEY: FP8, "layer.comfy_quant": comfy(format="mxfp8")}, "layer is stored as mxfp8"),
        ({KEY: INT8, "layer.comfy_quant": comfy(format="int8_tensorwise", convrot=True)}, "int8_tensorwise, rotated"),
        ({KEY: INT8, "layer.comfy_quant": comfy(format="int8_tensorwise", params={"convrot": True})}, "rotated"),
        ({KEY: INT8, "layer.comfy_quant": comfy()}, "layer is stored as None"),
        ({KEY: INT8, "layer.comfy_quant": UINT8}, "layer.comfy_quant is not JSON"),
        ({KEY: UINT8, "layer.weight_scale_2": ONE}, r"quantised weights \(NVFP4\)"),
        ({"layer.qweight": UINT8}, "GPTQ"),
        ({KEY: UINT8, "layer.weight.absmax": ONE}, "bitsandbytes"),
        ({KEY: INT8, "layer.SCB": torch.ones(4)}, "bitsandbytes"),
        ({KEY: UINT8, "layer.weight_scale": ONE}, "holds torch.uint8"),
        ({KEY: INT8, "layer.weight_scale": torch.ones((), dtype=torch.int32)}, "its scale torch.int32"),
        ({KEY: FP8, "layer.weight_scale": torch.ones(3)}, r"weight_scale has shape \[3\], layer.weight \[4, 4\]"),
        ({KEY: FP8, "layer.weight_scale": torch.ones(4, 1, 4)}, r"weight_scale has shape \[4, 1, 4\]"),
        ({KEY: FP8, "layer.weight_scale": torch.ones(0)}, r"weight_scale has shape \[0\]"),
        ({KEY: FP8, "other.weight_scale": ONE}, "other.weight_scale is the scale of no weight"),
        ({KEY: FP8, "layer.weight_scale": ONE, "layer.scale_weight": ONE}, "or a second one"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(InvalidCheckpoint, match=rf"a\.safetensors: .*{message}"):
        read_index(tmp_path)


def test_a_format_named_in_the_header_is_refused(tmp_path: Path) -> None:
    layers = json.dumps({"layers": {"layer": "nvfp4"}})
    save_file({KEY: UINT8}, tmp_path / "a.safetensors", metadata={"_quantization_metadata": layers})
    with pytest.raises(InvalidCheckpoint, match="layer is stored as nvfp4"):
        read_index(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"layers": 1}', '{"layers": null}'])
def test_a_header_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    save_file({KEY: FP8}, tmp_path / "a.safetensors", metadata={"_quantization_metadata": text})
    with pytest.raises(InvalidCheckpoint, match=r"a\.safetensors: its _quantization_metadata cannot be read"):
        read_index(tmp_path)


def test_integers_without_a_scale_are_no_weight(tmp_path: Path) -> None:
    state = write_toy(tmp_path / "toy")
    stored = {f"model.{name}": value for name, value in state.items()}
    stored["model.blocks.1.0.weight"] = codes(torch.int8, WIDTH, WIDTH)
    save_file(stored, tmp_path / "toy/model.safetensors")
    for toy in (Toy(), keep_in_fp8(Toy())):
        with pytest.raises(InvalidCheckpoint, match=r"model\.blocks\.1\.0\.weight holds torch\.int8 without a scale"):
            make_layout(toy, read_index(tmp_path / "toy"), toy.blocks)


def write_scaled(folder: Path, dtype: torch.dtype, scales: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A toy whose matrices in blocks are stored in 8 bits; its states, and those as they are stored."""
    stored = {f"model.{name}": value for name, value in write_toy(folder).items()}
    for layer, scale in scales.items():
        stored[f"model.{layer}.weight"] = codes(dtype, WIDTH, WIDTH)
        if scale.numel():
            stored[f"model.{layer}.weight_scale"] = scale
    save_file(stored, folder / "model.safetensors")
    return stored


SCALES = {
    "blocks.0.0": torch.rand(()),
    "blocks.1.0": torch.rand(WIDTH),
    "blocks.2.0": torch.rand(WIDTH, 1),
    "blocks.3.0": torch.empty(0),
}


@pytest.mark.parametrize("lazy", [False, True])
def test_codes_are_kept_in_fp8(tmp_path: Path, lazy: bool) -> None:
    """Rounded once, by who made the file."""
    stored = write_scaled(tmp_path / "toy", torch.float8_e4m3fn, SCALES)
    toy: Any = keep_in_fp8(Toy())
    layout = make_layout(toy, read_index(tmp_path / "toy"), toy.blocks)
    WeightResidency(toy, layout, OnDisk(layout) if lazy else HostCopy(layout, False), CpuDevice()).place(1 << 20)
    for path, scale in SCALES.items():
        layer = toy.module.get_submodule(path)
        assert torch.equal(layer.weight, stored[f"model.{path}.weight"].view(torch.int8))
        factors = scale.reshape(-1, 1) if scale.numel() else torch.ones(1, 1)
        assert torch.equal(layer.scale, factors.expand(WIDTH, 1))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e5m2])
def test_other_codes_are_quantised_anew(tmp_path: Path, dtype: torch.dtype) -> None:
    scales = SCALES | {"blocks.3.0": torch.rand(())}
    stored = write_scaled(tmp_path / "toy", dtype, scales)
    toy: Any = keep_in_fp8(Toy())
    layout = make_layout(toy, read_index(tmp_path / "toy"), toy.blocks)
    WeightResidency(toy, layout, HostCopy(layout, False), CpuDevice()).place(1 << 20)
    for path, scale in scales.items():
        layer = toy.module.get_submodule(path)
        expected = by_hand(stored[f"model.{path}.weight"], scale)
        found = layer.weight.view(torch.float8_e4m3fn).float() * layer.scale
        np.testing.assert_allclose(found, expected, rtol=2**-4, atol=2**-10 * layer.scale.max().item())


def test_groups_within_rows(tmp_path: Path) -> None:
    stored, scale = codes(torch.int8, 6, 256), torch.rand(6, 4)
    save_file({KEY: stored, "layer.weight_scale": scale}, tmp_path / "a.safetensors")
    expected = stored.float() * scale.repeat_interleave(64, dim=1)
    assert torch.equal(loaded(read_index(tmp_path)[KEY]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_scale_counts_whatever_the_type(tmp_path: Path, dtype: torch.dtype) -> None:
    """A file of fp8 has some layers in another type. A `scale` beside them may be anything."""
    stored, scale = torch.randn(4, 3).to(dtype), torch.rand(4).to(dtype)
    save_file(
        {KEY: stored, "layer.scale_weight": scale, "other.weight": stored.clone(), "other.scale": scale.clone()},
        tmp_path / "a.safetensors",
    )
    index = read_index(tmp_path)
    assert torch.equal(loaded(index[KEY], dtype), (stored.float() * scale.float()[:, None]).to(dtype))
    assert torch.equal(loaded(index["other.weight"], dtype), stored)
    assert torch.equal(loaded(index["other.scale"], dtype), scale)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao int8_weight_only"),
        ({"quant_method": "modelopt"}, "modelopt"),
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors pack-quantized"),
        ({"bits": 4}, "of no method"),
    ],
)
def test_a_configuration_that_is_refused(tmp_path: Path, values: dict[str, Any], named: str) -> None:
    save_file({KEY: FP8.clone()}, tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": values}))
    with pytest.raises(InvalidCheckpoint, match=rf"config\.json: quantised weights \({named}\) are not"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        None,
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
    ],
)
def test_a_configuration_of_fp8_with_scales(tmp_path: Path, values: dict[str, Any] | None) -> None:
    save_file({KEY: FP8.clone(), "layer.weight_scale_inv": torch.ones(1, 1)}, tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": values}))
    assert read_index(tmp_path)[KEY].is_scaled


def test_a_configuration_that_is_no_object(tmp_path: Path) -> None:
    save_file({KEY: FP8.clone()}, tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InvalidCheckpoint, match=r"config\.json: cannot be read as a JSON object"):
        read_index(tmp_path)
