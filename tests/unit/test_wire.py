"""Tensors between processes: no torch on the way, the same bits on arrival."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from deployments.stage.wire import pack, unpack
from deployments.tensor_bytes import TensorBytes
from lightx2v.types import Conditioning, GenerateRequest, Latents, Picture, Size

# Every 16-bit pattern: NaNs with payloads, infinities, subnormals and both zeros among them.
PATTERNS = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
REQUEST = GenerateRequest("wire", "a red circle", Size(64, 48), steps=3, seed=5, references=(Size(16, 16),))


def tensors(value: Any) -> list[torch.Tensor]:
    """Every tensor that `value` refers to, found as pickle finds what it has to write."""
    found: list[torch.Tensor] = []

    class Finder(pickle.Pickler):
        def persistent_id(self, one: Any) -> str | None:
            if isinstance(one, torch.Tensor):
                found.append(one)
                return "tensor"
            return None

    class Nowhere:
        def write(self, data: bytes) -> int:
            return len(data)

    Finder(Nowhere()).dump(value)
    return found


def sent(value: Any) -> Any:
    """`value` as it arrives in another process; what Ray shares cannot be written to."""
    packed = pack(value)
    assert tensors(packed) == []
    arrived = pickle.loads(pickle.dumps(packed))
    for part in arrived if isinstance(arrived, tuple) else (arrived,):
        if isinstance(part, TensorBytes):
            part.data.flags.writeable = False
    return unpack(arrived)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Also where a NaN is not equal to itself, or one zero equals the other."""
    same_kind = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same_kind and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize(
    "tensor",
    [
        PATTERNS.view(torch.bfloat16).view(256, 256),
        PATTERNS.view(torch.float16).view(2, 2**14, 2),
        PATTERNS.view(torch.float32),
        torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        torch.tensor([[True, False]]),
        torch.tensor([2**62, -1]),
        torch.tensor(3.5, dtype=torch.bfloat16),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_a_tensor_arrives_bit_for_bit(tensor: torch.Tensor) -> None:
    assert same_bits(sent(tensor), tensor)


def test_a_view_arrives_as_it_reads() -> None:
    whole = torch.arange(24, dtype=torch.bfloat16).view(4, 6)
    for view in (whole.T, whole[1:, ::2], whole[0].expand(3, 6)):
        assert torch.equal(sent(view), view)


def test_what_arrives_is_its_own() -> None:
    tensor = torch.zeros(4)
    arrived = sent(tensor)
    arrived += 1
    assert tensor.sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_stages_exchange(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative, tokens = torch.randn(3, 5, 8, generator=generator).to(dtype)
    picture = Picture(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    unfinished = Latents(tokens, 1, 5, history=(torch.tensor([1, 2, 2]), tokens.T, negative))
    conditioning, without, latents, reference, request = sent(
        (Conditioning(positive, negative), Conditioning(positive), unfinished, (picture, picture), REQUEST)
    )
    assert same_bits(conditioning.positive, positive)
    assert same_bits(conditioning.negative, negative)
    assert same_bits(without.positive, positive)
    assert without.negative is None
    assert same_bits(latents.tokens, tokens)
    assert (latents.rows, latents.columns) == (1, 5)
    assert all(same_bits(*pair) for pair in zip(latents.history, unfinished.history, strict=True))
    assert [one.size for one in reference] == [Size(6, 4)] * 2
    assert np.array_equal(reference[1].pixels, picture.pixels)
    assert request == REQUEST
    assert type(request.references) is tuple


def test_who_only_passes_it_on_needs_no_torch() -> None:
    """As the ingress does, in a process of its own."""
    latents = Latents(torch.ones(2, 2, dtype=torch.bfloat16), 1, 2, history=(torch.ones(1),))
    script = "import pickle, sys; one = pickle.load(sys.stdin.buffer); print(one, 'torch' in sys.modules)"
    packed = pickle.dumps(pack((Conditioning(torch.ones(1, 2)), latents)))
    run = subprocess.run([sys.executable, "-c", script], input=packed, capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.decode().strip().endswith("False")


@pytest.mark.parametrize("value", [None, (), "text", 1, 1.5, b"bytes", ((), (None,))])
def test_what_holds_no_tensor_passes_unchanged(value: object) -> None:
    assert pack(value) == value
    assert sent(value) == value


@dataclass(frozen=True)
class Nested:
    inner: tuple[Latents, ...]
    also: Latents | None = None


def test_tensors_are_found_at_any_depth() -> None:
    latents = Latents(torch.ones(2, 2), 1, 2)
    arrived = sent(Nested((latents, latents), latents))
    assert all(same_bits(one.tokens, latents.tokens) for one in (*arrived.inner, arrived.also))


def test_a_tensor_of_two_bytes_a_value_travels_as_two() -> None:
    packed = pack(torch.zeros(1000, dtype=torch.bfloat16))
    assert isinstance(packed, TensorBytes)
    assert (packed.data.dtype.name, packed.data.nbytes) == ("uint8", 2000)
