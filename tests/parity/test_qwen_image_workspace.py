"""What the parts of Qwen-Image say that they need, of weights and beside them, at the published shapes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightx2v.models.component import Component
from lightx2v.models.qwen_image.autoencoder import QwenImageAutoencoder
from lightx2v.models.qwen_image.denoiser import QwenImageDenoiser
from lightx2v.models.qwen_image.encoder import QwenImageTextEncoder
from lightx2v.models.qwen_image.spec import read_spec
from lightx2v.types import Conditioning, GenerateRequest, Size
from tests.checkpoints.qwen_image import write_configurations
from tests.parity.live import CUDNN, META, Asked, LiveBytes, check_member, check_room, shortened
from tests.parity.test_flux2_workspace import LARGE
from tests.visits import finish, first_velocity, take_steps

UNFUSED = F.scaled_dot_product_attention
LAYERS, WIDTH = 60, 3072
MODULATION = 2 * LAYERS * (6 * WIDTH * WIDTH + 6 * WIDTH)
"""A third of the transformer's parameters."""

REACHABLE: tuple[tuple[type[Component], int], ...] = (
    (QwenImageTextEncoder, 7_070_619_136 - 152_064 * 3584),
    (QwenImageDenoiser, 20_430_401_088 - MODULATION),
)
"""Parameters, counted in the reference's, without what stays on the host."""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_configurations(tmp_path_factory.mktemp("qwen_image"))


@pytest.fixture(autouse=True)
def _fused_attention(fused_attention: None) -> None:
    """Everywhere but where its operations are counted."""


@pytest.fixture
def denoiser(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> QwenImageDenoiser:
    """Its modulations are no numbers either."""
    denoiser = QwenImageDenoiser(shapes, torch.bfloat16, read_spec(shapes))
    table = torch.empty(1, LAYERS, 2, 6, 1, 1, WIDTH, dtype=torch.bfloat16)
    monkeypatch.setattr(denoiser, "_modulation", lambda *_: table)
    return denoiser


def make_request(size: Size = LARGE, guidance: float = 1.0) -> GenerateRequest:
    return GenerateRequest("workspace", "a red circle", size, 1, 0, guidance)


def make_conditioning(guidance: float) -> Conditioning:
    text = torch.empty(512, 3584)
    return Conditioning(text, text if guidance > 1 else None)


@pytest.mark.parametrize(("part", "count"), REACHABLE)
def test_reachable_weights(shapes: Path, part: Any, count: int) -> None:
    component = part(shapes, torch.bfloat16, read_spec(shapes))
    absent = component.weights.host_tensors | component.weights.unreachable
    states = component.module.state_dict()
    assert absent <= states.keys()
    assert sum(state.nbytes for name, state in states.items() if name not in absent) == 2 * count


def test_the_modulation_is_a_third_of_the_weights(shapes: Path) -> None:
    denoiser = QwenImageDenoiser(shapes, torch.bfloat16, read_spec(shapes))
    states = denoiser.module.state_dict()
    assert sum(states[name].nbytes for name in denoiser.weights.host_tensors) == 2 * MODULATION == 13_593_968_640


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_denoiser(denoiser: QwenImageDenoiser, guidance: float) -> None:
    denoiser = with_two_blocks(denoiser)
    with LiveBytes(denoiser) as meter:
        take_steps(denoiser, make_request(guidance=guidance), make_conditioning(guidance), (), META)
    assert 1.1 * meter.peak < denoiser.workspace(make_request(guidance=guidance)) < 1.25 * meter.peak


def with_two_blocks(denoiser: QwenImageDenoiser) -> QwenImageDenoiser:
    """As `shortened`, and its table of the modulation for as many."""
    denoiser = shortened(denoiser)
    denoiser.shape = replace(denoiser.shape, num_layers=2)
    table: Any = denoiser._modulation
    denoiser._modulation = lambda *asked: table(*asked)[:, :2]  # type: ignore[assignment]
    return denoiser


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_member_of_a_cohort(denoiser: QwenImageDenoiser, guidance: float) -> None:
    denoiser = with_two_blocks(denoiser)
    request, small = make_request(guidance=guidance), make_request(Size(512, 768))
    asked = (Asked(request, make_conditioning(guidance)), Asked(small, make_conditioning(1.0)))
    for one in asked:
        check_member(denoiser, one.request, partial(one.steps, denoiser))
    check_room(denoiser, asked)


def test_a_schedule(denoiser: QwenImageDenoiser) -> None:
    """One layer of the modulation is on the device at a time, with its rows, before they are a table on the host."""
    assert denoiser.workspace(make_request(Size(16, 16))) > 2 * 6 * WIDTH * WIDTH


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_operations_of_a_step(denoiser: QwenImageDenoiser, guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against PyTorch's own count, which leaves elementwise operations out as ours does."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", UNFUSED)
    with FlopCounterMode(display=False) as counter:
        first_velocity(denoiser, make_request(guidance=guidance), make_conditioning(guidance), (), META)
    assert counter.get_total_flops() == pytest.approx(denoiser.flops(make_request(guidance=guidance)), rel=0.02)


def test_encoder(shapes: Path) -> None:
    encoder = QwenImageTextEncoder(shapes, torch.bfloat16, read_spec(shapes))
    table = torch.empty(encoder.config.vocab_size, encoder.config.hidden_size, dtype=torch.bfloat16)
    encoder.module.embed_tokens.weight = torch.nn.Parameter(table, requires_grad=False)
    with LiveBytes(encoder) as meter:
        conditioning = finish(encoder.encode("a red circle " * 300, (), META))
    assert conditioning.shape == (512, encoder.config.hidden_size)
    check_member(encoder, make_request(), lambda: encoder.encode("a red circle " * 300, (), META))
    assert 1.1 * meter.peak < encoder.workspace(make_request()) < 1.25 * meter.peak


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [LARGE, Size(512, 768)])
def test_autoencoder(shapes: Path, dtype: torch.dtype, size: Size) -> None:
    autoencoder = QwenImageAutoencoder(shapes, dtype, read_spec(shapes))
    with LiveBytes(autoencoder) as decoding:
        autoencoder.module(torch.empty(1, 16, size.height // 8, size.width // 8, dtype=dtype, device=META))
    assert 1.1 * CUDNN * decoding.peak < autoencoder.workspace(make_request(size)) < 1.3 * CUDNN * decoding.peak
