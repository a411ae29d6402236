"""What the parts of Qwen-Image-Edit say that they need, of weights and beside them, at the published shapes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightx2v.models.component import Component
from lightx2v.models.qwen_image.autoencoder import QwenImageEditAutoencoder
from lightx2v.models.qwen_image.denoiser import QwenImageDenoiser
from lightx2v.models.qwen_image.edit_encoder import QwenImageEditTextEncoder
from lightx2v.models.qwen_image.spec import read_spec
from lightx2v.types import Conditioning, GenerateRequest, Latents, Picture, Size
from tests.checkpoints.qwen_image import write_configurations
from tests.parity.live import CUDNN, META, Asked, LiveBytes, check_member, check_room
from tests.parity.reference import make_image
from tests.parity.test_flux2_workspace import LARGE
from tests.parity.test_qwen_image_workspace import LAYERS, MODULATION, UNFUSED, WIDTH, with_two_blocks
from tests.visits import finish, take_steps

REACHABLE: tuple[tuple[type[Component], int], ...] = (
    (QwenImageEditTextEncoder, 7_747_169_280 - 152_064 * 3584),
    (QwenImageDenoiser, 20_430_401_088 - MODULATION),
)
"""Parameters, counted in the reference's, without what stays on the host."""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 2511."""
    folder = write_configurations(tmp_path_factory.mktemp("edit"), "QwenImageEditPlusPipeline")
    file = folder / "transformer/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"zero_cond_t": True}))
    return folder


@pytest.fixture(autouse=True)
def _fused_attention(fused_attention: None) -> None:
    pass


@pytest.fixture
def denoiser(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> QwenImageDenoiser:
    """Its modulations are no numbers either."""
    denoiser = QwenImageDenoiser(shapes, torch.bfloat16, read_spec(shapes))
    table = torch.empty(2, LAYERS, 2, 6, 1, 1, WIDTH, dtype=torch.bfloat16)
    monkeypatch.setattr(denoiser, "_modulation", lambda *_: table)
    return denoiser


def make_request(references: int, guidance: float = 1.0) -> GenerateRequest:
    return GenerateRequest("workspace", "a red circle", LARGE, 1, 0, guidance, references=(LARGE,) * references)


def ask(denoiser: QwenImageDenoiser, request: GenerateRequest) -> Asked:
    rows, columns = denoiser.grid(LARGE)
    references = [Latents(torch.empty(rows * columns, 64), rows, columns) for _ in request.references]
    text = torch.empty(denoiser._text_tokens(request), 3584)
    conditioning = Conditioning(text, text if request.guidance > 1 else None)
    return Asked(request, conditioning, references)


@pytest.mark.parametrize(("part", "count"), REACHABLE)
def test_reachable_weights(shapes: Path, part: Any, count: int) -> None:
    component = part(shapes, torch.bfloat16, read_spec(shapes))
    absent = component.weights.host_tensors | component.weights.unreachable
    states = component.module.state_dict()
    assert absent <= states.keys()
    assert sum(state.nbytes for name, state in states.items() if name not in absent) == 2 * count


def test_reachable_weights_of_the_autoencoder(shapes: Path) -> None:
    """44.6 of 126.9 million: of the others a still has no use."""
    states = QwenImageEditAutoencoder(shapes, torch.bfloat16, read_spec(shapes)).module.state_dict().values()
    assert sum(state.numel() for state in states) / 1e6 == pytest.approx(44.6, abs=0.05)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("references", [1, 3])
def test_denoiser(denoiser: QwenImageDenoiser, references: int, guidance: float) -> None:
    denoiser = with_two_blocks(denoiser)
    request = make_request(references, guidance)
    with LiveBytes(denoiser) as meter:
        take_steps(denoiser, *ask(denoiser, request), META)
    assert 1.1 * meter.peak < denoiser.workspace(request) < 1.25 * meter.peak


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_member_of_a_cohort(denoiser: QwenImageDenoiser, guidance: float) -> None:
    denoiser = with_two_blocks(denoiser)
    asked = [ask(denoiser, make_request(references, guidance)) for references in (1, 3)]
    for one in asked:
        check_member(denoiser, one.request, partial(one.steps, denoiser))
    check_room(denoiser, asked)


@pytest.mark.parametrize("references", [1, 3])
def test_operations_of_a_step(denoiser: QwenImageDenoiser, references: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against PyTorch's own count, which leaves elementwise operations out as ours does."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", UNFUSED)
    request = make_request(references)
    with FlopCounterMode(display=False) as counter:
        take_steps(denoiser, *ask(denoiser, request), META)
    assert counter.get_total_flops() == pytest.approx(denoiser.flops(request), rel=0.02)


@pytest.mark.parametrize("references", [1, 3])
def test_encoder(shapes: Path, references: int) -> None:
    """Of pictures that have the most tokens."""
    encoder = QwenImageEditTextEncoder(shapes, torch.bfloat16, read_spec(shapes))
    table = torch.empty(encoder.config.vocab_size, encoder.config.hidden_size, dtype=torch.bfloat16)
    encoder.module.embed_tokens.weight = torch.nn.Parameter(table, requires_grad=False)
    pictures = [Picture(np.asarray(make_image(0, 160, 1024)))] * references
    with LiveBytes(encoder) as meter:
        finish(encoder.encode("a red circle " * 300, pictures, META))
    assert 1.1 * meter.peak < encoder.workspace(make_request(references)) < 1.25 * meter.peak
    check_member(encoder, make_request(references), lambda: encoder.encode("a red circle " * 300, pictures, META))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autoencoder(shapes: Path, dtype: torch.dtype) -> None:
    """A large reference of a small picture, so that it is the encoding that counts."""
    autoencoder = QwenImageEditAutoencoder(shapes, dtype, read_spec(shapes))
    with LiveBytes(autoencoder) as encoding:
        autoencoder.module.encode(torch.empty(1, 3, LARGE.height, LARGE.width, dtype=dtype, device=META))
    request = GenerateRequest("workspace", "a red circle", Size(64, 64), 1, 0, references=(LARGE,))
    assert 1.1 * CUDNN * encoding.peak < autoencoder.workspace(request) < 1.3 * CUDNN * encoding.peak
