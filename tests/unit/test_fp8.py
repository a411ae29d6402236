"""Numbers of 8 bits: how far they are off, what is kept in them, and that it is read, bound and adapted as all else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidCheckpoint, InvalidSettings
from lightx2v.fp8 import MOST, quantise
from lightx2v.layers.linear import Fp8Linear
from lightx2v.models.fp8 import keep_in_fp8
from lightx2v.stages.build import open_device
from lightx2v.types import ChosenLora, GenerateRequest, LoraFile
from lightx2v.weights.adapters import Adapters
from lightx2v.weights.device import CpuDevice
from lightx2v.weights.host_copy import HostCopy, OnDisk, _identity
from lightx2v.weights.index import read_index
from lightx2v.weights.layout import Layout, make_layout
from lightx2v.weights.read import ROWS
from lightx2v.weights.tensor_ref import TensorRef
from lightx2v.weights.weight_residency import WeightResidency
from tests.checkpoints.lora import write
from tests.e4m3 import Emulated, by_rows, kept_in_fp8
from tests.unit.toy import REQUEST, WIDTH, Toy, activated, passes, write_toy

HIDDEN = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)


def wide_matrix(rows: int = 64, columns: int = 96) -> torch.Tensor:
    """Values over many orders of magnitude, rows too."""
    generator = torch.Generator().manual_seed(0)
    magnitudes = torch.exp2(-20 * torch.rand(rows, columns, generator=generator))
    scales = torch.exp2(40 * torch.rand(rows, 1, generator=generator) - 20)
    return torch.randn(rows, columns, generator=generator) * magnitudes * scales


@pytest.mark.parametrize(("dtype", "more"), [(torch.float32, 0.0), (torch.float16, 0.0), (torch.bfloat16, 2**-7)])
def test_the_error_of_a_value(dtype: torch.dtype, more: float) -> None:
    """Half a unit in the last place, of normal numbers and of the others; bf16 is divided in bf16."""
    matrix = wide_matrix().clamp(-60000, 60000).to(dtype)
    codes, scales = quantise(matrix)
    ours, exact = codes.float() * scales, matrix.float()
    bound = torch.maximum(2**-4 * exact.abs(), 2**-10 * scales) + more * exact.abs()
    assert codes.dtype == torch.float8_e4m3fn
    assert scales.dtype == torch.float32
    assert ((ours - exact).abs() <= bound * 1.0001).all()
    assert ((ours - exact).abs() > 0.4 * bound).any(), "or the bound is idle"
    assert (codes.float().abs().amax(dim=1) == MOST).all(), "the whole range is used"


def test_the_same_numbers_as_by_definition() -> None:
    matrix = wide_matrix()
    for ours, expected in zip(quantise(matrix), by_rows(matrix), strict=True):
        assert torch.equal(ours.float(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_zeros_stay_zeros_and_others_are_not_seen(dtype: torch.dtype) -> None:
    matrix = torch.zeros(4, 32, dtype=dtype)
    matrix[1, 5], matrix[2, 3], matrix[3, 0] = 3.5, torch.nan, torch.inf
    codes, scales = quantise(matrix)
    values = codes.float() * scales
    assert not values[0].any()
    assert torch.equal(values[1], matrix[1].float())
    assert not torch.isfinite(values[2]).any()
    assert not torch.isfinite(values[3]).all()


def linear(bias: bool, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Fp8Linear]:
    """A layer, and the same in fp8."""
    torch.manual_seed(1)
    layer = nn.Linear(48, 32, bias).to(dtype).requires_grad_(False)
    return layer, kept_in_fp8(layer)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (2, 5, 48)])
def test_a_product(shape: tuple[int, ...], bias: bool) -> None:
    layer, kept = linear(bias)
    states = torch.randn(shape)
    torch.testing.assert_close(kept(states), Emulated(layer)(states), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(kept(states), layer(states), rtol=1e-3, atol=1e-3)


def test_a_product_in_half_precision() -> None:
    layer, kept = linear(bias=True, dtype=torch.bfloat16)
    states = torch.randn(7, 48).bfloat16()
    assert kept(states).dtype == torch.bfloat16
    torch.testing.assert_close(kept(states), layer(states), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_it_compiles_in_one_graph(device: str) -> None:
    """The emulation, and the way of a GPU, which no value decides."""
    _, kept = linear(bias=True, dtype=torch.bfloat16)
    kept = kept.to(device)
    states = torch.randn(2, 5, 48, dtype=torch.bfloat16).to(device)
    compiled: Any = torch.compile(kept.forward, backend="eager", fullgraph=True)
    made = compiled(states)
    assert made.shape == (2, 5, 32)
    assert device == "meta" or torch.equal(made, kept(states))


def toy_layout(root: Path, toy: Toy) -> Layout:
    return make_layout(toy, read_index(root / "toy"), toy.blocks)


def load(root: Path, toy: Toy, *, lazy: bool = False) -> WeightResidency:
    layout = toy_layout(root, toy)
    source = OnDisk(layout) if lazy else HostCopy(layout, pinned=False)
    return WeightResidency(toy, layout, source, CpuDevice())


def test_which_layers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    on_host, precise = frozenset({"table.weight", "blocks.1.0.weight"}), frozenset({"blocks.2.0.weight"})
    monkeypatch.setattr(Toy, "kept", {"host_tensors": on_host, "precise": precise})
    toy = keep_in_fp8(Toy())
    kept = {name for name, layer in toy.module.named_modules() if isinstance(layer, Fp8Linear)}
    assert kept == toy.weights.fp8_layers == {"blocks.0.0", "blocks.3.0"}
    assert keep_in_fp8(Toy(width=24)).weights.fp8_layers == frozenset()
    assert Toy().weights.fp8_layers == frozenset(), "a component of its own"


def test_a_component_in_fp8_says_itself_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "operations", lambda toy, request: 7e9)
    plain, kept = Toy(), keep_in_fp8(Toy())
    assert kept.workspace(REQUEST) == int(1.1 * plain.workspace(REQUEST))
    assert (plain.flops(REQUEST), kept.flops(REQUEST)) == (7e9, 7e9 / 1.4)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_are_kept_as_numbers_and_scales(tmp_path: Path, stored: torch.dtype, lazy: bool) -> None:
    state = write_toy(tmp_path / "toy", dtype=stored)
    toy = keep_in_fp8(Toy())
    residence = load(tmp_path, toy, lazy=lazy)
    residence.place(residence.reachable)
    held = toy.module.state_dict()
    assert held.keys() - state.keys() == {f"blocks.{index}.0.scale" for index in range(4)}
    for path in toy.weights.fp8_layers:
        codes, scales = by_rows(state[f"{path}.weight"])
        assert torch.equal(held.pop(f"{path}.weight").view(torch.float8_e4m3fn).float(), codes)
        assert torch.equal(held.pop(f"{path}.scale"), scales)
    assert all(torch.equal(value, state[name].float()) for name, value in held.items())


def test_a_matrix_of_many_rows_is_read_whole(tmp_path: Path) -> None:
    """Some rows at a time, and the last time fewer."""
    width = ROWS + 64
    state = write_toy(tmp_path / "toy", blocks=1, width=width)
    toy = keep_in_fp8(Toy(1, width=width))
    residence = load(tmp_path, toy)
    residence.place(residence.reachable)
    codes, scales = by_rows(state["blocks.0.0.weight"])
    layer: Any = toy.module.get_submodule("blocks.0.0")
    assert torch.equal(layer.weight.view(torch.float8_e4m3fn).float(), codes)
    assert torch.equal(layer.scale, scales)
    plain = toy_layout(tmp_path, Toy(1, dtype=torch.bfloat16, width=width)).blocks[0].nbytes
    assert 0.5 < residence.layout.blocks[0].nbytes / plain < 0.51


def test_a_stored_tensor_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightx2v.weights import read

    write_toy(tmp_path / "toy")
    layout = toy_layout(tmp_path, keep_in_fp8(Toy()))
    refs: list[TensorRef] = []
    pread = read._pread

    def noting(ref: TensorRef, into: torch.Tensor) -> None:
        refs.append(ref)
        pread(ref, into)

    monkeypatch.setattr(read, "_pread", noting)
    for unit in layout.units:
        read.read_one(unit)
    assert len(refs) == len(set(refs)) == len(Toy().module.state_dict()) - 1


def test_a_host_copy_is_not_shared_with_one_in_full(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    layouts = [toy_layout(tmp_path, toy) for toy in (Toy(), keep_in_fp8(Toy()), keep_in_fp8(Toy()))]
    plain, kept, again = map(_identity, layouts)
    assert kept == again != plain


def test_a_missing_weight_is_named_as_it_is_stored(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", blocks=3)
    with pytest.raises(InvalidCheckpoint, match=r"lack the tensor model\.blocks\.3\.0\.weight"):
        toy_layout(tmp_path, keep_in_fp8(Toy()))


@pytest.mark.parametrize("resident", range(6))
@pytest.mark.parametrize("lazy", [False, True])
def test_output_is_the_same_whatever_is_resident(tmp_path: Path, resident: int, lazy: bool) -> None:
    write_toy(tmp_path / "toy")
    whole, toy = keep_in_fp8(Toy()), keep_in_fp8(Toy())
    all_of_it, some = load(tmp_path, whole), load(tmp_path, toy, lazy=lazy)
    some.place(sum(unit.nbytes for unit in some.layout.units[: max(1, resident)]))
    with torch.no_grad(), all_of_it.running(1 << 20), some.running(some.nbytes):
        for _ in zip(passes(all_of_it, 2), passes(some, 2), strict=True):
            assert torch.equal(toy.module(HIDDEN), whole.module(HIDDEN))


def test_a_lora_beside_it(tmp_path: Path) -> None:
    """On what enters the layer, not on what it makes of it; and nothing of it stays."""
    write_toy(tmp_path / "toy")
    toy: Any = keep_in_fp8(Toy(1))
    toy.names = {}
    down, up = torch.randn(2, WIDTH), torch.randn(WIDTH, 2)
    names = [f"model.blocks.0.0.lora_{part}.weight" for part in "AB"]
    file = write(tmp_path / "a.safetensors", dict(zip(names, (down, up), strict=True)))
    adapters = Adapters(toy, {"a": LoraFile(file)}, CpuDevice(), lazy=True)
    load(tmp_path, toy).place(1 << 20)
    block = toy.module.blocks[0][0]
    request = GenerateRequest("lora", "", REQUEST.size, 1, 0, loras=(ChosenLora("a", 0.5),))
    with torch.no_grad():
        before = block(HIDDEN)
        with activated(adapters, request):
            beside = block(HIDDEN)
        assert torch.equal(block(HIDDEN), before)
    torch.testing.assert_close(beside - before, 0.5 * HIDDEN @ down.T @ up.T)


def test_a_gpu_that_has_no_such_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    with pytest.raises(InvalidSettings, match=r"fp8: needs .* 8\.9 or more, this one has 8\.6"):
        open_device("cuda", EngineSettings(fp8=True), "a card")
