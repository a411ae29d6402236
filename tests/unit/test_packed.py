"""GGUF files and packed layers: against the `gguf` package's own numbers, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType, GGUFEndian, GGUFWriter
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightx2v.errors import InvalidCheckpoint
from lightx2v.layers import packed as packed_layers
from lightx2v.layers.compiled import compile_blocks
from lightx2v.layers.packed import PackedLinear
from lightx2v.models.fp8 import keep_in_fp8
from lightx2v.models.packed import keep_packed
from lightx2v.packing import PACKINGS, find_packing
from lightx2v.types import ChosenLora, GenerateRequest, LoraFile
from lightx2v.weights.adapters import Adapters
from lightx2v.weights.device import CpuDevice
from lightx2v.weights.host_copy import HostCopy, OnDisk
from lightx2v.weights.index import read_index
from lightx2v.weights.layout import Entry, make_layout, make_unit, view
from lightx2v.weights.read import ROWS, read_one
from lightx2v.weights.tensor_ref import TensorRef, joined
from lightx2v.weights.weight_residency import WeightResidency
from tests.checkpoints.lora import write
from tests.checkpoints.packed import Bytes, random_blocks, write_gguf
from tests.unit.toy import REQUEST, Toy, activated, expected, one_pass, write_toy

WIDE = 256
"""A whole block of every type."""


def by_gguf(name: str, blocks: Bytes) -> torch.Tensor:
    return torch.from_numpy(dequantize(blocks, GGMLQuantizationType[name]))


def loaded(ref: TensorRef, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    unit = make_unit("unit", 0, [Entry("entry", ref, dtype)])
    return view(read_one(unit), unit.entries[0])


@settings(max_examples=30)
@given(kind=st.sampled_from(PACKINGS), rows=st.integers(1, 40), blocks=st.integers(1, 5), seed=st.integers(0, 9))
def test_numbers_are_those_of_the_gguf_package(
    tmp_path_factory: pytest.TempPathFactory, kind: str, rows: int, blocks: int, seed: int
) -> None:
    """Unpacked when they are read, and by a layer."""
    columns = blocks * find_packing(kind).numbers
    stored = random_blocks(kind, rows, columns, seed)
    file = write_gguf(tmp_path_factory.mktemp("gguf") / "a.gguf", {"a.weight": (kind, stored)}, {})
    ref, numbers = read_index(file.parent)["a.weight"], by_gguf(kind, stored)
    assert (ref.shape, ref.nbytes) == ((rows, columns), stored.nbytes)
    assert torch.equal(loaded(ref), numbers)
    assert torch.equal(loaded(ref, torch.bfloat16), numbers.bfloat16())
    states = torch.randn(3, columns)
    assert torch.equal(layer_of(kind, stored, columns)(states), F.linear(states, numbers))


def layer_of(kind: str, stored: Bytes, columns: int, bias: torch.Tensor | None = None) -> PackedLinear:
    linear = nn.Linear(columns, len(stored), bias is not None, device="meta")
    layer = PackedLinear(linear, find_packing(kind))
    layer.weight = nn.Parameter(torch.from_numpy(stored).view(torch.int8), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_unpacks_some_rows_at_a_time(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_layers, "CHUNK", 3 * WIDE)
    stored, bias = random_blocks("Q4_K", 10, WIDE), torch.randn(10, dtype=dtype)
    states = torch.randn(2, 5, WIDE, dtype=dtype)
    made = layer_of("Q4_K", stored, WIDE, bias)(states)
    assert made.dtype == dtype
    assert torch.equal(made, F.linear(states, by_gguf("Q4_K", stored).to(dtype), bias))


@pytest.mark.parametrize("kind", PACKINGS)
def test_a_layer_compiles_in_one_graph(kind: str) -> None:
    """Also the ninth type of a process, which torch by default does not compile."""
    layer = layer_of(kind, random_blocks(kind, 8, WIDE), WIDE)
    compile_blocks(layer, ())
    compiled: Any = torch.compile(layer.forward, backend="aot_eager", fullgraph=True, dynamic=True)
    states = torch.randn(4, WIDE)
    assert torch.equal(compiled(states), layer(states))


def test_rows_are_whole_blocks(tmp_path: Path) -> None:
    stored = random_blocks("Q6_K", ROWS + 8, 512)
    write_gguf(tmp_path / "a.gguf", {"a.weight": ("Q6_K", stored)}, {})
    ref, numbers = read_index(tmp_path)["a.weight"], by_gguf("Q6_K", stored)
    assert torch.equal(loaded(ref.part(1, 2)), numbers[len(numbers) // 2 :])
    swapped = joined((ref.rows(6, 9), ref.rows(2, 4)))
    assert torch.equal(loaded(swapped), torch.cat((numbers[6:9], numbers[2:4])))


def test_parts_of_one_layer_are_of_one_type(tmp_path: Path) -> None:
    packed = {f"{kind}.weight": (kind, random_blocks(kind, 4, WIDE)) for kind in ("Q4_K", "Q6_K")}
    write_gguf(tmp_path / "a.gguf", packed, {})
    with pytest.raises(InvalidCheckpoint, match=r"a\.gguf: parts of one layer are stored in several types"):
        joined(list(read_index(tmp_path).values()))


def test_a_shape_that_gguf_has_no_room_for(tmp_path: Path) -> None:
    """A convolution's, kept beside it; its rows are no whole blocks."""
    stored = random_blocks("Q8_0", 6, 32)
    write_gguf(tmp_path / "a.gguf", {"a.weight": ("Q8_0", stored)}, {}, {"a.weight": (8, 3, 2, 2, 2)})
    ref = read_index(tmp_path)["a.weight"]
    assert torch.equal(loaded(ref), by_gguf("Q8_0", stored).view(8, 3, 2, 2, 2))
    with pytest.raises(InvalidCheckpoint, match="packed across its rows"):
        ref.rows(0, 4)


def test_what_is_not_packed(tmp_path: Path) -> None:
    half, whole = np.arange(6, dtype=np.float16).reshape(2, 3), np.arange(4, dtype=np.float32)
    brain = torch.randn(2, 4).bfloat16()
    write_gguf(
        tmp_path / "a.gguf", {"brain": ("BF16", brain.view(torch.uint8).numpy())}, {"half": half, "whole": whole}
    )
    index = read_index(tmp_path)
    assert {name: ref.dtype for name, ref in index.items()} == {
        "half": torch.float16,
        "whole": torch.float32,
        "brain": torch.bfloat16,
    }
    assert torch.equal(loaded(index["half"]), torch.from_numpy(half).float())
    assert torch.equal(loaded(index["whole"]), torch.from_numpy(whole))
    assert torch.equal(loaded(index["brain"]), brain.float())


@pytest.mark.parametrize("kind", ["IQ4_XS", "TQ1_0", "MXFP4"])
def test_other_types_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    blocks = np.zeros((2, find_packing(kind).nbytes), dtype=np.uint8)
    write_gguf(tmp_path / "a.gguf", {"a.weight": (kind, blocks)}, {})
    with pytest.raises(InvalidCheckpoint, match=rf"a\.gguf: a\.weight has the type {kind}; supported are Q4_0, "):
        read_index(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "header"])
def test_damage_is_refused(tmp_path: Path, damage: str) -> None:
    file = write_gguf(tmp_path / "a.gguf", {"a.weight": ("Q4_K", random_blocks("Q4_K", 8, WIDE))}, {})
    whole = file.read_bytes()
    damaged = {"truncated": whole[:-1000], "garbage": b"no GGUF file at all", "empty": b"", "header": whole[:40]}
    file.write_bytes(damaged[damage])
    with pytest.raises(InvalidCheckpoint, match=r"a\.gguf: not a complete GGUF file"):
        read_index(tmp_path)


def test_another_byte_order_is_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "a.gguf", "flux", endianess=GGUFEndian.BIG)
    writer.add_tensor("a", np.arange(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InvalidCheckpoint, match="another byte order"):
        read_index(tmp_path)


def write_packed_toy(folder: Path, kinds: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """A toy whose first matrices in blocks are packed; the state that it should have."""
    state = write_toy(folder, blocks=len(kinds) + 1, width=WIDE)
    (folder / "model.safetensors").unlink()
    packed = {f"blocks.{index}.0.weight": (kind, random_blocks(kind, WIDE, WIDE)) for index, kind in enumerate(kinds)}
    packed["table.weight"] = ("Q8_0", random_blocks("Q8_0", 8, WIDE))
    packed["entry.weight"] = ("Q6_K", random_blocks("Q6_K", WIDE, WIDE))
    plain = {f"model.{name}": value.numpy() for name, value in state.items() if name not in packed}
    write_gguf(folder / "model.gguf", {f"model.{name}": stored for name, stored in packed.items()}, plain)
    return state | {name: by_gguf(*stored) for name, stored in packed.items()}


def load(root: Path, toy: Toy, *, lazy: bool = False) -> WeightResidency:
    index = read_index(root / "toy")
    keep_packed(toy, index)
    layout = make_layout(toy, index, toy.blocks)
    return WeightResidency(toy, layout, OnDisk(layout) if lazy else HostCopy(layout, pinned=False), CpuDevice())


@pytest.mark.parametrize("resident", range(5))
@pytest.mark.parametrize("lazy", [False, True])
def test_a_component_with_packed_layers(tmp_path: Path, lazy: bool, resident: int) -> None:
    """The same bits as with the unpacked weights in place, whatever is resident."""
    state = write_packed_toy(tmp_path / "toy", ("Q4_K", "Q5_0", "Q3_K"))
    toy = Toy(4, width=WIDE)
    residence = load(tmp_path, toy, lazy=lazy)
    assert toy.weights.packed_layers == {f"blocks.{index}.0" for index in range(3)}
    residence.place(sum(unit.nbytes for unit in residence.layout.units[: 1 + resident]))
    hidden = torch.linspace(-1, 1, 3 * WIDE).view(3, WIDE)
    with torch.no_grad(), one_pass(residence, residence.nbytes):
        assert torch.equal(toy.module(hidden), expected(state, hidden, WIDE))
        assert torch.equal(toy.module.get_parameter("table.weight"), state["table.weight"])


def test_bytes_are_counted_packed(tmp_path: Path) -> None:
    """In the layout, and one weight that is unpacked in the workspace."""
    write_packed_toy(tmp_path / "toy", ("Q4_K",))
    plain, toy = Toy(2, torch.bfloat16, WIDE), Toy(2, torch.bfloat16, WIDE)
    blocks = load(tmp_path, toy).layout.blocks
    assert blocks[0].nbytes == WIDE * WIDE * 144 // 256 + 2 * WIDE
    assert blocks[1].nbytes == 2 * (WIDE * WIDE + WIDE)
    assert toy.workspace(REQUEST) == plain.workspace(REQUEST) + WIDE * WIDE * (2 + 16)


def test_in_fp8_packed_weights_are_quantised(tmp_path: Path) -> None:
    state = write_packed_toy(tmp_path / "toy", ("Q4_K", "Q8_0"))
    toy: Any = keep_in_fp8(Toy(3, width=WIDE))
    load(tmp_path, toy).place(1 << 20)
    assert toy.weights.packed_layers == frozenset()
    layer = toy.module.get_submodule("blocks.1.0")
    found = layer.weight.view(torch.float8_e4m3fn).float() * layer.scale
    torch.testing.assert_close(found, state["blocks.1.0.weight"], rtol=2**-4, atol=2**-10 * layer.scale.max().item())


def test_which_layers_stay_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those on the host, nor those that are precise."""
    write_packed_toy(tmp_path / "toy", ("Q4_K", "Q4_K", "Q4_K"))
    on_host, precise = frozenset({"table.weight", "blocks.1.0.weight"}), frozenset({"blocks.2.0.weight"})
    monkeypatch.setattr(Toy, "kept", {"host_tensors": on_host, "precise": precise})
    toy = Toy(4, width=WIDE)
    load(tmp_path, toy)
    assert toy.weights.packed_layers == {"blocks.0.0"}


def test_a_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_packed_toy(tmp_path / "toy", ("Q4_K",))
    toy, index = Toy(2, width=WIDE), read_index(tmp_path / "toy")
    index["model.blocks.0.0.weight"] = index["model.blocks.0.0.weight"].rows(0, 128)
    keep_packed(toy, index)
    with pytest.raises(InvalidCheckpoint, match=r"0\.weight has shape \[128, 256\], .* says \[256, 256\]"):
        make_layout(toy, index, toy.blocks)


def test_a_lora_beside_it(tmp_path: Path) -> None:
    write_packed_toy(tmp_path / "toy", ("Q4_K",))
    toy: Any = Toy(2, width=WIDE)
    toy.names = {}
    down, up = torch.randn(2, WIDE), torch.randn(WIDE, 2)
    names = [f"model.blocks.0.0.lora_{part}.weight" for part in "AB"]
    file = write(tmp_path / "a.safetensors", dict(zip(names, (down, up), strict=True)))
    load(tmp_path, toy).place(1 << 20)
    adapters = Adapters(toy, {"a": LoraFile(file)}, CpuDevice(), lazy=True)
    block, hidden = toy.module.blocks[0][0], torch.randn(3, WIDE)
    with torch.no_grad():
        before = block(hidden)
        with activated(adapters, GenerateRequest("lora", "", REQUEST.size, 1, 0, loras=(ChosenLora("a", 0.5),))):
            beside = block(hidden)
    torch.testing.assert_close(beside - before, 0.5 * hidden @ down.T @ up.T, rtol=1e-4, atol=1e-3)
