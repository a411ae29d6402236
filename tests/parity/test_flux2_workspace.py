"""What the parts of FLUX.2 say that they need, of weights and beside them, at the published shapes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.checkpoint.flux2 import SHAPES, write_configurations
from benchmarks.checkpoint.tokenizer import make_tokenizer
from lightx2v.models.flux2.autoencoder import Flux2Autoencoder
from lightx2v.models.flux2.denoiser import Flux2Denoiser
from lightx2v.models.flux2.spec import read_spec
from lightx2v.models.fp8 import keep_in_fp8
from lightx2v.models.registry import find_family
from lightx2v.types import Conditioning, GenerateRequest, Latents, Size, StageName
from tests.checkpoints.flux2 import write_dev_configurations
from tests.parity.live import CUDNN, META, Asked, LiveBytes, check_member, check_room, shortened
from tests.visits import finish, first_velocity, take_steps

LARGE = Size(1024, 1024)

pytestmark = pytest.mark.usefixtures("fused_attention")

REACHABLE = {
    "klein-4b": (3_114_088_192 - 151_936 * 2560, 3_875_544_576),
    "klein-9b": (5_831_883_520 - 151_936 * 4096, 9_078_581_248),
    "dev": (17_343_754_240 - 131_072 * 5120, 32_223_281_152),
}
"""Parameters of the text encoder, its embedding table apart, and of the transformer, counted in the reference's."""


@pytest.fixture(scope="module", params=REACHABLE)
def shapes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "dev":
        write_dev_configurations(folder)
        return folder
    write_configurations(folder, SHAPES[request.param], distilled=False)
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def make_request(size: Size = LARGE, references: tuple[Size, ...] = (), guidance: float = 1.0) -> GenerateRequest:
    return GenerateRequest("workspace", "a red circle", size, 2, 0, guidance, references=references)


def test_reachable_weights(shapes: Path, request: pytest.FixtureRequest) -> None:
    family, counts = find_family(shapes), REACHABLE[request.node.callspec.params["shapes"]]
    stages: tuple[StageName, ...] = ("encode", "denoise")
    for stage, count in zip(stages, counts, strict=True):
        component = family.build(stage, shapes, torch.bfloat16, read_spec(shapes))
        absent = component.weights.host_tensors | component.weights.unreachable
        states = component.module.state_dict()
        assert sum(state.nbytes for name, state in states.items() if name not in absent) == 2 * count


@pytest.mark.parametrize("references", [0, 1, 2])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_denoiser(shapes: Path, references: int, guidance: float) -> None:
    denoiser = shortened(Flux2Denoiser(shapes, torch.bfloat16, read_spec(shapes)))
    request = make_request(references=(LARGE,) * references, guidance=guidance)
    text = torch.empty(512, denoiser.shape.joint_attention_dim)
    conditioning = Conditioning(text, text if denoiser.spec.is_guided(request) else None)
    encoded = [Latents(torch.empty(4096, 128), 64, 64)] * references
    with LiveBytes(denoiser) as meter:
        take_steps(denoiser, request, conditioning, encoded, META)
    assert 1.1 * meter.peak < denoiser.workspace(request) < 1.25 * meter.peak


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_member_of_a_cohort(shapes: Path, guidance: float) -> None:
    denoiser = shortened(Flux2Denoiser(shapes, torch.bfloat16, read_spec(shapes)))
    request, large = make_request(guidance=guidance), make_request(references=(LARGE,), guidance=guidance)
    text = torch.empty(512, denoiser.shape.joint_attention_dim)
    conditioning = Conditioning(text, text if denoiser.spec.is_guided(request) else None)
    picture = Latents(torch.empty(4096, 128), 64, 64, edited=torch.empty(4096, 1))
    masked = replace(large, is_masked=True, strength=1.0)
    asked = (Asked(request, conditioning), Asked(large, conditioning, (picture,)))
    for one in (*asked, Asked(masked, conditioning, (picture,))):
        check_member(denoiser, one.request, partial(one.steps, denoiser))
    check_room(denoiser, asked)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_parts_in_fp8(shapes: Path, guidance: float) -> None:
    """They need more, and the encoder no more than is set aside."""
    denoiser = shortened(keep_in_fp8(Flux2Denoiser(shapes, torch.bfloat16, read_spec(shapes))))
    request = make_request(guidance=guidance)
    text = torch.empty(512, denoiser.shape.joint_attention_dim)
    conditioning = Conditioning(text, text if denoiser.spec.is_guided(request) else None)
    with LiveBytes(denoiser) as meter:
        take_steps(denoiser, request, conditioning, (), META)
    assert 1.1 * meter.peak < denoiser.workspace(request) < 1.25 * meter.peak
    encoder: Any = keep_in_fp8(find_family(shapes).build("encode", shapes, torch.bfloat16, read_spec(shapes)))
    table = torch.empty(encoder.config.vocab_size, encoder.config.hidden_size, dtype=torch.bfloat16)
    encoder.module.embed_tokens.weight = torch.nn.Parameter(table, requires_grad=False)
    with LiveBytes(encoder) as meter:
        finish(encoder.encode("a red circle " * 300, (), META))
    assert 1.1 * meter.peak < encoder.workspace(request)


@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_operations_of_a_step(shapes: Path, references: int, guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against PyTorch's own count, which leaves elementwise operations out as ours does."""
    monkeypatch.undo()
    denoiser = Flux2Denoiser(shapes, torch.bfloat16, read_spec(shapes))
    request = make_request(references=(LARGE,) * references, guidance=guidance)
    text = torch.empty(512, denoiser.shape.joint_attention_dim)
    encoded = [Latents(torch.empty(4096, 128), 64, 64)] * references
    conditioning = Conditioning(text, text if denoiser.spec.is_guided(request) else None)
    with FlopCounterMode(display=False) as counter:
        first_velocity(denoiser, request, conditioning, encoded, META)
    assert counter.get_total_flops() == pytest.approx(denoiser.flops(request), rel=0.02)


def test_encoder(shapes: Path) -> None:
    encoder: Any = find_family(shapes).build("encode", shapes, torch.bfloat16, read_spec(shapes))
    table = torch.empty(encoder.config.vocab_size, encoder.config.hidden_size, dtype=torch.bfloat16)
    encoder.module.embed_tokens.weight = torch.nn.Parameter(table, requires_grad=False)
    with LiveBytes(encoder) as meter:
        conditioning = finish(encoder.encode("a red circle " * 300, (), META))
    assert conditioning.shape == (512, 3 * encoder.config.hidden_size)
    check_member(encoder, make_request(), lambda: encoder.encode("a red circle " * 300, (), META))
    assert 1.1 * meter.peak < encoder.workspace(make_request()) < 1.25 * meter.peak


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [LARGE, Size(512, 768)])
def test_autoencoder(shapes: Path, dtype: torch.dtype, size: Size) -> None:
    autoencoder = Flux2Autoencoder(shapes, dtype, read_spec(shapes))
    with LiveBytes(autoencoder) as decoding:
        autoencoder.module.decode(torch.empty(1, 32, size.height // 8, size.width // 8, dtype=dtype, device=META))
    assert 1.1 * CUDNN * decoding.peak < autoencoder.workspace(make_request(size)) < 1.3 * CUDNN * decoding.peak
    with LiveBytes(autoencoder) as encoding:
        autoencoder.module.encode(torch.empty(1, 3, size.height, size.width, dtype=dtype, device=META))
    workspace = autoencoder.workspace(make_request(Size(16, 16), (Size(64, 64), size)))
    assert 1.1 * CUDNN * encoding.peak < workspace < 1.3 * CUDNN * encoding.peak
