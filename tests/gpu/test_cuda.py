"""The engine on a real GPU. Run with `python -m pytest tests/gpu` where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.pictures import asked, noise
from lightx2v.config import EngineSettings, LoraSettings
from lightx2v.errors import OutOfMemory
from lightx2v.layers.attention import exact_masks
from lightx2v.layers.compiled import compile_blocks
from lightx2v.layers.packed import PackedLinear
from lightx2v.packing import PACKINGS, find_packing
from lightx2v.pipeline import CONTEXT, Pipeline
from lightx2v.types import ChosenLora, Picture, Reference, Size, Video
from lightx2v.weights.device import CudaDevice
from lightx2v.weights.host_copy import HostCopy
from lightx2v.weights.index import read_index
from lightx2v.weights.layout import make_layout
from tests.checkpoints import lora
from tests.checkpoints.packed import random_blocks
from tests.checkpoints.quantised import write_packed
from tests.e4m3 import kept_in_fp8
from tests.unit.toy import Toy, load_toy, one_pass, passes, write_toy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIZES = (Size(96, 64), Size(64, 80))


@pytest.fixture(autouse=True)
def _memory_returns() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture(params=["checkpoint", "dev"])
def model(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def make(checkpoint: Path, **settings: Any) -> tuple[Picture | Video, Picture | Video]:
    pipeline = Pipeline(EngineSettings(model=str(checkpoint), device="cuda", **settings))
    references = [Reference(noise(size, seed)) for seed, size in enumerate(SIZES)]
    text = pipeline.generate(asked("a red circle", SIZES[0], 1))
    edit = pipeline.generate(asked("a red circle", SIZES[0], 1, references=SIZES), references)
    pipeline.close()
    assert torch.cuda.memory_allocated() < 256 << 20
    return text, edit


@pytest.mark.parametrize(
    "settings",
    [
        {"cpu_offload": False},
        {"cpu_offload": True, "offload_granularity": "model"},
        {"cpu_offload": True, "offload_granularity": "block"},
        {"cpu_offload": True, "offload_granularity": "phase", "compile": False},
        {"cpu_offload": True, "lazy_load": True},
        {"gpu_budget": CONTEXT + (40 << 20)},
    ],
)
def test_same_bits_under_every_setting(model: Path, settings: dict[str, Any]) -> None:
    """Among those that compile, and among those that do not."""
    usual = make(model, compile=settings.get("compile", "auto"))
    for picture, expected in zip(make(model, **settings), usual, strict=True):
        assert np.array_equal(picture.pixels, expected.pixels)


@pytest.mark.parametrize("settings", [{"cpu_offload": True}, {"cpu_offload": True, "lazy_load": True}])
def test_a_lora_gives_the_same_bits_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    loras = {"oil": LoraSettings(path=str(lora.write(tmp_path / "oil.safetensors", lora.peft())))}
    made = []
    for offload in ({"cpu_offload": False}, settings):
        pipeline = Pipeline(EngineSettings(model=str(checkpoint), device="cuda", loras=loras, **offload))
        plain = asked("a red circle", SIZES[0], 1)
        requests = (plain, replace(plain, loras=(ChosenLora("oil"),)), plain)
        made.append([pipeline.generate(request).pixels for request in requests])
        pipeline.close()
    (before, painted, after), streamed = made
    assert np.array_equal(before, after)
    assert not np.array_equal(before, painted)
    assert all(map(np.array_equal, made[0], streamed))


@pytest.mark.parametrize(
    "settings",
    [
        {"cpu_offload": True, "offload_granularity": "model"},
        {"cpu_offload": True, "offload_granularity": "phase", "compile": False},
        {"cpu_offload": True, "lazy_load": True},
        {"gpu_budget": CONTEXT + (40 << 20)},
    ],
)
def test_same_bits_in_fp8_under_every_setting(model: Path, settings: dict[str, Any]) -> None:
    expected = make(model, fp8=True, compile=settings.get("compile", "auto"))
    for picture, other in zip(make(model, fp8=True, **settings), expected, strict=True):
        assert np.array_equal(picture.pixels, other.pixels)
    assert not np.array_equal(make(model)[0].pixels, expected[0].pixels), "or nothing was in fp8"


@pytest.mark.parametrize(
    "settings", [{"cpu_offload": True}, {"cpu_offload": True, "lazy_load": True}, {"gpu_budget": CONTEXT + (40 << 20)}]
)
def test_same_bits_of_packed_weights_under_every_setting(
    distilled: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    packed, _ = write_packed(distilled, tmp_path)
    for picture, other in zip(make(packed, **settings), make(packed), strict=True):
        assert np.array_equal(picture.pixels, other.pixels)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("tokens", [1, 7, 512, 4608])
def test_a_product_in_fp8_is_the_emulated_one(tokens: int, dtype: torch.dtype, bias: bool) -> None:
    """Both round their inputs alike, so that only sums and the result, which is bf16, are apart."""
    torch.manual_seed(0)
    kept = kept_in_fp8(torch.nn.Linear(1536, 4096 + 16, bias).to(dtype).requires_grad_(False))
    states = torch.randn(1, tokens, 1536).to(dtype)
    expected = kept(states)
    found = kept.cuda()(states.cuda())
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    torch.testing.assert_close(found.cpu().float(), expected.float(), rtol=2**-7, atol=2**-7)


def test_a_product_in_fp8_compiles_in_one_graph() -> None:
    kept = kept_in_fp8(torch.nn.Linear(256, 512).bfloat16().requires_grad_(False)).cuda()
    states = torch.randn(2, 100, 256, dtype=torch.bfloat16, device="cuda")
    compiled: Any = torch.compile(kept.forward, fullgraph=True)
    torch.testing.assert_close(compiled(states), kept(states), rtol=2**-4, atol=2**-4)


def packed_layer(kind: str) -> PackedLinear:
    """On the CPU, with more numbers than are unpacked at a time."""
    layer = PackedLinear(torch.nn.Linear(1024, 4096 + 512, bias=False, device="meta"), find_packing(kind))
    stored = torch.from_numpy(random_blocks(kind, 4096 + 512, 1024, factor=1e-3))
    layer.weight = torch.nn.Parameter(stored.view(torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize("kind", PACKINGS)
def test_packed_numbers_are_those_of_the_cpu(kind: str) -> None:
    """To the bit in both, and compiled within the last bit of the sums."""
    layer = packed_layer(kind)
    expected = layer._unpacked(torch.float32)
    layer = layer.cuda()
    assert torch.equal(layer._unpacked(torch.float32).cpu(), expected)
    compile_blocks(layer, ())
    compiled: Any = torch.compile(layer._unpacked, fullgraph=True)
    torch.testing.assert_close(compiled(torch.float32).cpu(), expected, rtol=2**-20, atol=2**-20)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_packed_product_takes_the_bytes_that_it_says(compiled: bool) -> None:
    """In bf16, beside its input and output."""
    layer = packed_layer("Q4_K").cuda()
    forward: Any = torch.compile(layer.forward, fullgraph=True, dynamic=True) if compiled else layer.forward
    states = torch.randn(1, 512, 1024, dtype=torch.bfloat16, device="cuda")
    with torch.inference_mode():
        forward(states)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        made = forward(states)
    assert torch.cuda.max_memory_allocated() - before - made.nbytes <= layer.unpacked_bytes(torch.bfloat16)
    expected = torch.nn.functional.linear(states, layer._unpacked(torch.bfloat16))
    torch.testing.assert_close(made, expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_sees_nothing_gets_nothing(dtype: torch.dtype) -> None:
    """At the published shape: dev's padding rests on it."""
    mask = torch.ones(513, 513, dtype=torch.bool, device="cuda").tril()
    mask[:, 0] = False
    query, key, value = torch.randn(3, 1, 32, 513, 128, dtype=dtype, device="cuda")
    with exact_masks():
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask[None, None])
    assert torch.isfinite(attended).all()
    assert not attended[:, :, 0].any()
    assert attended[:, :, 1:].any(-1).all()


def test_a_run_is_held_to_its_grant() -> None:
    device = CudaDevice()
    with pytest.raises(OutOfMemory), device.run_limits(0, 64 << 20):
        torch.empty(1 << 30, dtype=torch.uint8, device=device.torch_device)


def test_every_user_of_a_host_copy_has_it_pinned(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    toy = Toy()
    layout = make_layout(toy, read_index(tmp_path / "toy"), toy.blocks)
    first, second = HostCopy(layout, pinned=True), HostCopy(layout, pinned=True)
    for unit in layout.units:
        assert first.unit(unit).is_pinned()
        assert second.unit(unit).is_pinned()
        assert torch.equal(first.unit(unit).cuda(), second.unit(unit).cuda())
    first.close()
    assert all(second.unit(unit).is_pinned() for unit in layout.units)
    second.close()


@pytest.mark.parametrize("resident", [0, 1, 5, 15, 16])
def test_large_blocks_stream_beside_the_compute(tmp_path: Path, resident: int) -> None:
    """A quarter of a GiB in blocks of 16 MiB, whose copies and computation overlap: any misplaced wait shows."""
    write_toy(tmp_path / "toy", blocks=16, width=2048)
    device = CudaDevice()
    toy, residence = load_toy(tmp_path, device, blocks=16, width=2048)
    hidden = torch.linspace(-1, 1, 4096 * 2048, device="cuda").view(4096, 2048)
    with torch.inference_mode():
        residence.place(residence.reachable)
        with one_pass(residence, residence.nbytes):
            expected = toy.module(hidden)
        residence.drop(sum(device.cost(unit.nbytes) for unit in residence.units[: 1 + resident]))
        with residence.running(residence.nbytes):
            for _ in passes(residence, 8):
                assert torch.equal(toy.module(hidden), expected)
    residence.close()


def test_dropped_memory_is_free_for_other_processes(checkpoint: Path) -> None:
    device = CudaDevice()
    before = torch.cuda.mem_get_info()[0]
    slab = device.allocate(1 << 30)
    assert torch.cuda.mem_get_info()[0] <= before - slab.nbytes
    del slab
    device.trim()
    assert torch.cuda.mem_get_info()[0] >= before - (4 << 20)


def test_the_rates_are_those_of_a_gpu() -> None:
    """From 1 to 64 TB of operations while a GB arrives: PCIe 3 with a small card to PCIe 5 with a large one."""
    device = CudaDevice()
    assert 1e12 < 1e9 / (device.overlap_bytes(1e15) / 1e15) < 64e12
