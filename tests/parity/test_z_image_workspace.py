"""What the parts of Z-Image say that they need, of weights and beside them, at the published shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightx2v.models.z_image.autoencoder import ZImageAutoencoder
from lightx2v.models.z_image.denoiser import ZImageDenoiser
from lightx2v.models.z_image.encoder import ZImageTextEncoder
from lightx2v.models.z_image.spec import read_spec
from lightx2v.types import Conditioning, GenerateRequest, Latents, Size
from lightx2v.weights.layout import reachable
from tests.checkpoints.z_image import write_z_image_configurations
from tests.parity.live import CUDNN, META, Asked, LiveBytes, check_member, check_room, shortened
from tests.visits import finish, first_velocity, take_steps

LARGE = Size(1024, 1024)
TEXT_ENCODER, TRANSFORMER, VAE = 3_921_534_720, 6_154_908_736, 83_819_683
"""Parameters, counted in the reference's; of the text encoder 35 of 36 layers, and the embedding table."""

pytestmark = pytest.mark.usefixtures("fused_attention")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("z-image")
    write_z_image_configurations(folder)
    return folder


def make_request(size: Size = LARGE, references: tuple[Size, ...] = (), guidance: float = 0.0) -> GenerateRequest:
    return GenerateRequest("workspace", "a red circle", size, 2, 0, guidance, references=references)


def captions(guidance: float) -> Conditioning:
    text = torch.empty(512, 2560)
    return Conditioning(text, text if guidance else None)


@pytest.mark.parametrize(
    ("part", "count"),
    [(ZImageTextEncoder, TEXT_ENCODER), (ZImageDenoiser, TRANSFORMER), (ZImageAutoencoder, VAE)],
)
def test_reachable_weights(shapes: Path, part: Any, count: int) -> None:
    component = part(shapes, torch.bfloat16, read_spec(shapes))
    states = dict(reachable(component))
    assert sum(state.nbytes for state in states.values()) == 2 * count
    on_host = sum(states[name].nbytes for name in component.weights.host_tensors)
    assert on_host == (2 * 151_936 * 2560 if part is ZImageTextEncoder else 0)


@pytest.mark.parametrize("guidance", [0.0, 4.0])
@pytest.mark.parametrize("size", [LARGE, Size(528, 784)])
def test_denoiser(shapes: Path, size: Size, guidance: float) -> None:
    denoiser = shortened(ZImageDenoiser(shapes, torch.bfloat16, read_spec(shapes)))
    request = make_request(size, guidance=guidance)
    with LiveBytes(denoiser) as meter:
        take_steps(denoiser, request, captions(guidance), (), META)
    assert 1.1 * meter.peak < denoiser.workspace(request) < 1.25 * meter.peak


@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_a_member_of_a_cohort(shapes: Path, guidance: float) -> None:
    denoiser, small = shortened(ZImageDenoiser(shapes, torch.bfloat16, read_spec(shapes))), Size(512, 768)
    request, text = make_request(guidance=guidance), captions(guidance)
    check_member(denoiser, request, lambda: Asked(request, text).steps(denoiser))
    picture = Latents(torch.empty(1536, 64), 48, 32, edited=torch.empty(1536, 1))
    masked = replace(make_request(small, (small,)), is_masked=True, strength=1.0)
    check_member(denoiser, masked, lambda: Asked(masked, captions(0.0), (picture,)).steps(denoiser))
    check_room(denoiser, (Asked(request, text), Asked(masked, captions(0.0), (picture,))))


@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_operations_of_a_step(shapes: Path, guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against PyTorch's own count, which leaves elementwise operations out as ours does."""
    monkeypatch.undo()
    denoiser, request = ZImageDenoiser(shapes, torch.bfloat16, read_spec(shapes)), make_request(guidance=guidance)
    with FlopCounterMode(display=False) as counter:
        first_velocity(denoiser, request, captions(guidance), (), META)
    assert counter.get_total_flops() == pytest.approx(denoiser.flops(request), rel=0.02)


def test_encoder(shapes: Path) -> None:
    encoder = ZImageTextEncoder(shapes, torch.bfloat16, read_spec(shapes))
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
    """A reference is encoded at the request's size, whatever its own."""
    autoencoder = ZImageAutoencoder(shapes, dtype, read_spec(shapes))
    with LiveBytes(autoencoder) as decoding:
        autoencoder.module.decode(torch.empty(1, 16, size.height // 8, size.width // 8, dtype=dtype, device=META))
    assert 1.1 * CUDNN * decoding.peak < autoencoder.workspace(make_request(size)) < 1.3 * CUDNN * decoding.peak
    with LiveBytes(autoencoder) as encoding:
        autoencoder.module.encode(torch.empty(1, 3, size.height, size.width, dtype=dtype, device=META))
    workspace = autoencoder.workspace(make_request(size, (Size(64, 64),)))
    assert workspace > 1.1 * CUDNN * encoding.peak
