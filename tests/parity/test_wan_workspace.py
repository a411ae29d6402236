"""What the parts of Wan say that they need, of weights and beside them, at the published shapes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightx2v.models.component import Component
from lightx2v.models.wan.autoencoder import WanAutoencoder
from lightx2v.models.wan.denoiser import WanDenoiser
from lightx2v.models.wan.encoder import WanTextEncoder
from lightx2v.models.wan.refiner import WanRefiner
from lightx2v.models.wan.spec import read_spec
from lightx2v.types import Conditioning, GenerateRequest, Latents, Picture, Size
from tests.checkpoints.wan import UMT5_XXL, write_configurations
from tests.parity.live import CUDNN, META, Asked, LiveBytes, check_member, check_room, shortened
from tests.visits import finish, first_velocity, take_steps

LARGE = Size(832, 480)
TRANSFORMERS = {
    "1.3b": 1_418_996_800,
    "14b": 14_288_491_584,
    "i2v-a14b": 14_288_901_184,
    "i2v-14b": 16_394_878_784,
    "ti2v-5b": 4_999_787_712,
}
AUTOENCODER, ENCODER, RESIDUAL_AUTOENCODER, OVER_TIME = 126_892_531, 53_596_928, 704_688_668, 1_536_960
AUTOENCODERS = {
    "1.3b": AUTOENCODER - ENCODER,
    "14b": AUTOENCODER - ENCODER,
    "i2v-a14b": AUTOENCODER,
    "i2v-14b": AUTOENCODER,
    "ti2v-5b": RESIDUAL_AUTOENCODER - OVER_TIME,
}
TEXT_ENCODER = 5_680_910_336 - 256_384 * 4096
IMAGE_ENCODER = 630_766_080 - 19_677_440 - 2 * 1280
"""Parameters, counted in the reference's; the text encoder's embedding table apart, and what comes after the last layer
but one of the image encoder."""


@pytest.fixture(scope="module", params=TRANSFORMERS)
def shapes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_configurations(tmp_path_factory.mktemp(request.param), request.param)


def make_request(size: Size = LARGE, frames: int = 81, guidance: float = 5.0) -> GenerateRequest:
    return GenerateRequest("workspace", "a red circle", size, 2, 0, guidance, frames=frames)


def reachable(component: Component) -> dict[str, torch.Tensor]:
    absent = component.weights.host_tensors | component.weights.unreachable
    return {name: state for name, state in component.module.state_dict().items() if name not in absent}


def inputs(denoiser: WanDenoiser, request: GenerateRequest) -> tuple[Conditioning, tuple[Latents, ...]]:
    """A prompt of 100 tokens, and as many references as the model takes."""
    frames, rows, columns = denoiser._grid(request)
    frames = 1 if denoiser.spec.expand_timesteps else frames
    latents = Latents(torch.empty(frames * rows * columns, denoiser.shape.out_channels), rows, columns, frames)
    text, image_encoder = torch.empty(100, 4096), denoiser.spec.image_encoder
    seen = torch.empty(image_encoder.tokens, 1280) if image_encoder else None
    conditioning = Conditioning(text, text if request.guidance > 1 else None, seen)
    return conditioning, (latents,) * denoiser.spec.max_references


def test_reachable_weights(shapes: Path, request: pytest.FixtureRequest) -> None:
    denoiser, encoder = (
        WanDenoiser(shapes, torch.bfloat16, read_spec(shapes)),
        WanTextEncoder(shapes, torch.bfloat16, read_spec(shapes)),
    )
    states = reachable(denoiser)
    precise = sum(state.numel() for name, state in states.items() if name in denoiser.weights.precise)
    variant = request.node.callspec.params["shapes"]
    count = TRANSFORMERS[variant]
    assert sum(state.nbytes for state in states.values()) == 2 * count + 2 * precise
    assert precise < count / 250
    seeing = IMAGE_ENCODER if encoder.sees else 0
    assert encoder.sees == (variant == "i2v-14b")
    assert sum(state.nbytes for state in reachable(encoder).values()) == 2 * (TEXT_ENCODER + seeing)
    autoencoder = WanAutoencoder(shapes, torch.bfloat16, read_spec(shapes))
    assert sum(state.nbytes for state in reachable(autoencoder).values()) == 2 * AUTOENCODERS[variant]


@pytest.mark.parametrize(("variant", "count"), [("a14b", 14_288_491_584), ("i2v-a14b", 14_288_901_184)])
def test_reachable_weights_of_the_second(tmp_path: Path, variant: str, count: int) -> None:
    """As many as of the first, from a folder of their own."""
    shapes = write_configurations(tmp_path, variant)
    first, second = (component(shapes, torch.bfloat16, read_spec(shapes)) for component in (WanDenoiser, WanRefiner))
    assert (first.folder, second.folder) == ("transformer", "transformer_2")
    sizes = [{name: state.nbytes for name, state in reachable(one).items()} for one in (first, second)]
    assert sizes[0] == sizes[1]
    assert sum(state.numel() for state in reachable(second).values()) == count


@pytest.mark.usefixtures("fused_attention")
@pytest.mark.parametrize(("size", "frames", "guidance"), [(LARGE, 81, 5.0), (Size(1280, 704), 17, 1.0)])
def test_denoiser(shapes: Path, size: Size, frames: int, guidance: float) -> None:
    denoiser = shortened(WanDenoiser(shapes, torch.bfloat16, read_spec(shapes)))
    request = make_request(size, frames, guidance)
    with LiveBytes(denoiser) as meter:
        take_steps(denoiser, request, *inputs(denoiser, request), META)
    assert 1.1 * meter.peak < denoiser.workspace(request) < 1.25 * meter.peak


@pytest.mark.usefixtures("fused_attention")
def test_a_member_of_a_cohort(shapes: Path) -> None:
    """A long video and a short one."""
    denoiser = shortened(WanDenoiser(shapes, torch.bfloat16, read_spec(shapes)))
    requests = replace(make_request(), steps=3), make_request(Size(640, 480), 5, 1.0)
    asked = [Asked(request, *inputs(denoiser, request)) for request in requests]
    for one in asked:
        check_member(denoiser, one.request, partial(one.steps, denoiser))
    check_room(denoiser, asked)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_operations_of_a_step(shapes: Path, guidance: float) -> None:
    """Against PyTorch's own count, which leaves elementwise operations out as ours does."""
    denoiser, request = (
        WanDenoiser(shapes, torch.bfloat16, read_spec(shapes)),
        make_request(frames=5, guidance=guidance),
    )
    with FlopCounterMode(display=False) as counter:
        first_velocity(denoiser, request, *inputs(denoiser, request), META)
    assert counter.get_total_flops() == pytest.approx(denoiser.flops(request), rel=0.01)


@pytest.mark.usefixtures("fused_attention")
def test_encoder(shapes: Path) -> None:
    encoder = WanTextEncoder(shapes, torch.bfloat16, read_spec(shapes))
    table = torch.empty(UMT5_XXL["vocab_size"], UMT5_XXL["d_model"], dtype=torch.bfloat16)
    encoder.module.embed_tokens.weight = torch.nn.Parameter(table, requires_grad=False)
    with LiveBytes(encoder) as meter:
        conditioning = finish(encoder.encode("a red circle " * 300, (), META))
    assert conditioning.shape == (512, 4096)
    check_member(shortened(encoder), make_request(), lambda: encoder.encode("a red circle " * 300, (), META))
    with LiveBytes(encoder) as looking:
        seen = encoder.look((Picture(np.zeros((224, 224, 3), np.uint8)),), META)
    assert (seen.shape if seen is not None else None) == ((257, 1280) if encoder.sees else None)
    assert looking.peak < meter.peak
    assert 1.1 * meter.peak < encoder.workspace(make_request()) < 1.25 * meter.peak


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("frames", [25, 1])
@pytest.mark.parametrize("variant", ["i2v-a14b", "ti2v-5b"])
def test_autoencoder(tmp_path: Path, dtype: torch.dtype, variant: str, frames: int) -> None:
    """Encoding takes less than decoding."""
    shapes = write_configurations(tmp_path, variant)
    autoencoder = WanAutoencoder(shapes, dtype, read_spec(shapes))
    request, config = make_request(frames=frames), autoencoder.module.config
    with LiveBytes(autoencoder) as encoding:
        autoencoder.encode(request, Picture(np.zeros((64, 64, 3), np.uint8)), META)
    rows, columns = (side // config.scale_factor_spatial for side in (LARGE.height, LARGE.width))
    latents = torch.empty(1, config.z_dim, (frames - 1) // 4 + 1, rows, columns, dtype=dtype, device=META)
    with LiveBytes(autoencoder) as decoding:
        autoencoder.module.decode(latents)
    assert 1.1 * CUDNN * decoding.peak < autoencoder.workspace(request) < 1.3 * CUDNN * decoding.peak
    assert encoding.peak < decoding.peak
