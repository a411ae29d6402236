"""Files to host to device: what is read, what is refused, and that a run does not depend on what is resident."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import weakref
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lightx2v.errors import InvalidCheckpoint, OutOfMemory
from lightx2v.weights.device import CpuDevice
from lightx2v.weights.emulated_card import EmulatedCard
from lightx2v.weights.index import read_index
from lightx2v.weights.layout import ALIGNMENT, make_layout
from tests.checkpoints.packed import write_gguf
from tests.unit.toy import WIDTH, Toy, expected, load_toy, one_pass, passes, write_toy

HIDDEN = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)


def card(tmp_path: Path, budget: int) -> EmulatedCard:
    return EmulatedCard(f"test-{tmp_path.name}-{os.getpid()}", budget)


def test_index_reads_shards(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(4.0), "b": torch.arange(6, dtype=torch.int64)}
    for name, tensor in tensors.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    weight_map = {name: f"{name}.safetensors" for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    index = read_index(tmp_path)
    for name, tensor in tensors.items():
        with index[name].file.open("rb") as stream:
            stream.seek(index[name].spans[0].offset)
            stored = torch.frombuffer(bytearray(stream.read(index[name].nbytes)), dtype=index[name].dtype)
        assert torch.equal(stored.view(index[name].shape), tensor)


@pytest.mark.parametrize("damage", ["truncated", "missing", "garbage", "huge header", "empty"])
def test_index_refuses_damage_and_names_the_file(tmp_path: Path, damage: str) -> None:
    save_file({"a": torch.arange(1000.0)}, tmp_path / "model.safetensors")
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    damaged = {
        "truncated": content[:-8],
        "garbage": b"not a safetensors file at all",
        "huge header": (2**60).to_bytes(8, "little") + content[8:],
        "empty": b"",
    }
    if damage == "missing":
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    else:
        file.write_bytes(damaged[damage])
    with pytest.raises(InvalidCheckpoint, match=r"\.safetensors"):
        read_index(tmp_path)


def test_index_of_several_folders(tmp_path: Path) -> None:
    for folder, name in (("one", "a"), ("two", "b"), ("three", "a")):
        (tmp_path / folder).mkdir()
        save_file({name: torch.arange(4.0)}, tmp_path / folder / "model.safetensors")
    index = read_index(tmp_path / "one", tmp_path / "two")
    assert {name: ref.file.parent.name for name, ref in index.items()} == {"a": "one", "b": "two"}
    with pytest.raises(InvalidCheckpoint, match="three: the tensor a is in another folder"):
        read_index(tmp_path / "one", tmp_path / "three")


def test_index_never_leaves_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(InvalidCheckpoint, match="outside"):
        read_index(tmp_path)


def write_files(folder: Path, *names: str) -> None:
    """Each with one tensor, called as the file; an index lists the files that a space follows."""
    for name in names:
        file, *shards = name.split()
        if shards:
            (folder / file).write_text(json.dumps({"weight_map": dict(zip(shards, shards, strict=True))}))
        elif file.endswith(".gguf"):
            write_gguf(folder / file, {}, {file: np.zeros(4, dtype=np.float32)})
        else:
            save_file({file: torch.zeros(4)}, folder / file)


SHARDS = ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors")
HALF_SHARDS = ("m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors")
INDEX = f"m.safetensors.index.json {' '.join(SHARDS)}"
HALF_INDEX = f"m.safetensors.index.fp16.json {' '.join(HALF_SHARDS)}"


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["m.safetensors", "m.fp16.safetensors", "m.bf16.safetensors"], ["m.safetensors"]),
        (["m.fp16.safetensors"], ["m.fp16.safetensors"]),
        (["m.safetensors", *HALF_SHARDS, HALF_INDEX], ["m.safetensors"]),
        (["m.safetensors", "m-00001-of-00001.fp16.safetensors"], ["m.safetensors"]),
        ([*SHARDS, INDEX, *HALF_SHARDS, HALF_INDEX], SHARDS),
        ([*SHARDS, INDEX, "m.fp16.safetensors"], SHARDS),
        ([*HALF_SHARDS, HALF_INDEX], HALF_SHARDS),
        (["wan2.1.safetensors"], ["wan2.1.safetensors"]),
        (["m-Q4_K_M.gguf"], ["m-Q4_K_M.gguf"]),
    ],
)
def test_which_files_are_read(tmp_path: Path, names: Sequence[str], read: Sequence[str]) -> None:
    write_files(tmp_path, *names)
    assert sorted(read_index(tmp_path)) == sorted(read)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["a.safetensors", "b.safetensors"],
        ["m.fp16.safetensors", "m.bf16.safetensors"],
        ["a.gguf", "b.gguf"],
        ["a.gguf", "b.safetensors"],
        ["a.gguf", *SHARDS, INDEX],
        [*SHARDS],
    ],
)
def test_files_of_which_none_is_meant(tmp_path: Path, names: Sequence[str]) -> None:
    write_files(tmp_path, *names)
    with pytest.raises(InvalidCheckpoint, match=r"expected one safetensors or GGUF file, .* found"):
        read_index(tmp_path)


def test_layout_is_aligned_and_leaves_out_what_is_unreachable(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    toy = Toy()
    layout = make_layout(toy, read_index(tmp_path / "toy"), toy.blocks)
    names = [entry.name for unit in (*layout.units, layout.host) for entry in unit.entries]
    assert sorted(names) == sorted(toy.module.state_dict())
    assert [entry.name for entry in layout.host.entries] == ["table.weight"]
    assert all((unit.offset + entry.offset) % ALIGNMENT == 0 for unit in layout.units for entry in unit.entries)
    ends = accumulate(unit.nbytes for unit in (*layout.units, layout.host))
    assert [unit.offset + unit.nbytes for unit in (*layout.units, layout.host)] == list(ends)


def test_layout_refuses_another_shape(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    toy = Toy()
    toy.module.get_submodule("entry").weight = torch.nn.Parameter(torch.empty(2, 2, device="meta"))
    with pytest.raises(InvalidCheckpoint, match=r"entry.weight has shape \[16, 16\]"):
        make_layout(toy, read_index(tmp_path / "toy"), toy.blocks)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_are_converted_to_the_components_type(tmp_path: Path, stored: torch.dtype, lazy: bool) -> None:
    state = write_toy(tmp_path / "toy", dtype=stored)
    toy, residence = load_toy(tmp_path, CpuDevice(), lazy=lazy)
    with torch.inference_mode():
        residence.place(residence.reachable)
    for name, value in toy.module.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float()), name


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_a_state_can_be_the_last_slice_of_what_is_stored(
    tmp_path: Path, dimension: int, stored: torch.dtype, lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device and on the host; the others are whole."""
    state = write_toy(tmp_path / "toy", dtype=stored)
    sliced = {"table.weight": dimension, "blocks.1.0.weight": dimension}
    monkeypatch.setattr(Toy, "kept", {"last_slices": sliced})
    frames = {name: torch.stack((torch.zeros_like(state[name]), state[name]), dim=dimension) for name in sliced}
    save_file({f"model.{name}": value for name, value in (state | frames).items()}, tmp_path / "toy/model.safetensors")
    toy, residence = load_toy(tmp_path, CpuDevice(), lazy=lazy)
    residence.place(residence.reachable)
    for name, value in toy.module.state_dict().items():
        assert torch.equal(value, state[name].float()), name
    whole = make_layout(toy, read_index(tmp_path / "toy"), toy.blocks)
    toy.weights = replace(toy.weights, last_slices={"table.weight": dimension})
    with pytest.raises(InvalidCheckpoint, match=r"blocks\.1\.0\.weight has shape"):
        make_layout(toy, read_index(tmp_path / "toy"), toy.blocks)
    assert sum(unit.nbytes for unit in whole.units) == residence.reachable


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("resident", range(6))
def test_output_is_the_same_whatever_is_resident(tmp_path: Path, resident: int, lazy: bool) -> None:
    state = write_toy(tmp_path / "toy")
    toy, residence = load_toy(tmp_path, CpuDevice(), lazy=lazy)
    residence.place(sum(unit.nbytes for unit in residence.layout.units[: max(1, resident)]))
    before = residence.nbytes
    with residence.running(residence.nbytes):
        for _ in chain(passes(residence, 2), [None]):
            assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN)), "the third was not announced"
    assert residence.nbytes == before


@given(limits=st.lists(st.integers(0, 8000), max_size=6))
def test_place_and_drop_keep_to_their_limits(tmp_path_factory: pytest.TempPathFactory, limits: list[int]) -> None:
    root = tmp_path_factory.getbasetemp() / "toy-weights"
    if not root.exists():
        write_toy(root / "toy")
    _, residence = load_toy(root, CpuDevice())
    for limit in limits:
        residence.drop(limit)
        assert residence.nbytes <= limit
        residence.place(limit)
        assert residence.nbytes <= limit
        assert limit < residence.reachable or residence.nbytes == residence.reachable
    residence.close()


def test_dropped_weights_are_gone_from_the_module(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    toy, residence = load_toy(tmp_path, CpuDevice())
    residence.place(residence.reachable)
    residence.drop(0)
    placed = [name for name, value in toy.module.state_dict().items() if value.device.type != "meta"]
    assert placed == ["table.weight"]


class Watched(CpuDevice):
    """Counts the slabs that are alive when it is trimmed, as CUDA's allocator would find them."""

    def __init__(self) -> None:
        super().__init__()
        self.slabs: list[weakref.ref[torch.Tensor]] = []
        self.alive_at_trim = 0

    def allocate(self, nbytes: int) -> torch.Tensor:
        slab = super().allocate(nbytes)
        self.slabs.append(weakref.ref(slab))
        return slab

    def trim(self) -> None:
        self.alive_at_trim = sum(slab() is not None for slab in self.slabs)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_dropped_slab_is_free_when_the_device_is_trimmed(tmp_path: Path, kept: int) -> None:
    write_toy(tmp_path / "toy")
    device = Watched()
    _, residence = load_toy(tmp_path, device)
    residence.place(residence.reachable)
    residence.drop(sum(unit.nbytes for unit in residence.layout.units[:kept]))
    assert device.alive_at_trim == kept


def test_a_failing_block_leaves_nothing_behind(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    memory = card(tmp_path, 1 << 20)
    toy, residence = load_toy(tmp_path, CpuDevice(memory))
    residence.place(residence.layout.rest.nbytes)
    before = memory.used()
    toy.module.get_submodule("blocks.2.1").forward = lambda hidden: hidden.no_such_attribute
    with pytest.raises(AttributeError, match="no_such_attribute"), one_pass(residence, residence.nbytes):
        toy.module(HIDDEN)
    assert memory.used() == before == {os.getpid(): residence.nbytes}
    residence.drop(0)
    assert memory.used() == {}


def test_the_cpu_card_enforces_its_budget(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    _, residence = load_toy(tmp_path, CpuDevice(card(tmp_path, 4000)))
    with pytest.raises(OutOfMemory, match=r"asked, \d+ of 4000 are free"):
        residence.place(residence.reachable)
    assert residence.nbytes <= 4000
    residence.drop(0)


def test_workspace_counts_and_returns_after_a_failure(tmp_path: Path) -> None:
    memory = card(tmp_path, 1000)
    device = CpuDevice(memory)

    def fail() -> None:
        with device.run_limits(0, 600):
            assert memory.used() == {os.getpid(): 600}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert memory.used() == {}
    with pytest.raises(OutOfMemory), device.run_limits(0, 1001):
        pytest.fail("not reached")


def test_weights_only_travel_to_the_device(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    device = CpuDevice()
    _, residence = load_toy(tmp_path, device)
    for _ in range(3):
        residence.place(residence.reachable)
        residence.drop(0)
    assert device.h2d_bytes == 3 * residence.reachable
    assert device.d2h_bytes == 0


def take_and_wait(name: str, ready: multiprocessing.synchronize.Event) -> None:
    EmulatedCard(name, 1000).take(900)
    ready.set()
    signal.pause()


def test_a_killed_process_gives_its_bytes_back() -> None:
    name = f"test-kill-{os.getpid()}"
    memory = EmulatedCard(name, 1000)
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=take_and_wait, args=(name, ready))
    process.start()
    assert ready.wait(60)
    assert memory.used() == {process.pid: 900}
    with pytest.raises(OutOfMemory, match="100 of 1000"):
        memory.take(200)
    process.kill()
    process.join()
    memory.take(1000)
    memory.give(1000)
    assert memory.used() == {}


def test_a_layer_that_stays_on_the_host_is_counted_each_time_it_crosses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = write_toy(tmp_path / "toy")
    monkeypatch.setattr(Toy, "kept", {"host_tensors": frozenset({"table.weight", "entry.weight", "entry.bias"})})
    device = CpuDevice()
    toy, residence = load_toy(tmp_path, device)
    residence.place(residence.reachable)
    on_host = toy.module.get_parameter("entry.weight").data_ptr()
    for times in (1, 2):
        with one_pass(residence, residence.reachable):
            assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))
        assert device.h2d_bytes == residence.reachable + times * 4 * (WIDTH * WIDTH + WIDTH)
    assert toy.module.get_parameter("entry.weight").data_ptr() == on_host
