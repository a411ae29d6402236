"""What the parts of FLUX.2 say that they need beside weights, against the live tensors of the published shapes."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.checkpoint import SHAPES, make_tokenizer, write_configurations
from lightx2v.core import Conditioning, GenerateRequest, Latents, Size
from lightx2v.models.component import Component
from lightx2v.models.flux2.autoencoder import Flux2Autoencoder
from lightx2v.models.flux2.denoiser import Flux2Denoiser
from lightx2v.models.flux2.encoder import Flux2TextEncoder

META, LARGE = torch.device("meta"), Size(1024, 1024)
CUDNN = 2.4 / 1.5
"""Measured at 1024 x 1024 in bf16: a decode's peak on a GPU over its live tensors."""


class LiveBytes(TorchDispatchMode):
    """Counts what lives on the meta device beside a component's own states; `peak` is the most at any time."""

    def __init__(self, component: Component) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {state.untyped_storage()._cdata for state in component.module.state_dict().values()}
        self.live = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device == META:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.live -= nbytes


@pytest.fixture(scope="module", params=sorted(SHAPES))
def shapes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_configurations(folder, SHAPES[request.param])
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(autouse=True)
def _fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device attention would materialise its scores, which no kernel on a GPU does."""

    def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.empty_like(query)

    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)


def make_request(size: Size = LARGE, references: tuple[Size, ...] = ()) -> GenerateRequest:
    return GenerateRequest("workspace", "a red circle", size, steps=2, seed=0, references=references)


@pytest.mark.parametrize("references", [0, 1, 2])
@pytest.mark.parametrize("is_guided", [False, True])
def test_denoiser(shapes: Path, references: int, is_guided: bool) -> None:
    denoiser = Flux2Denoiser(shapes, torch.bfloat16)
    request = make_request(references=(LARGE,) * references)
    text = torch.empty(512, denoiser.shape.joint_attention_dim)
    seen = [Latents(torch.empty(4096, 128), 64, 64)] * references
    with LiveBytes(denoiser) as meter:
        for _ in denoiser.steps(request, Conditioning(text, text if is_guided else None), seen, META):
            pass
    assert 1.1 * meter.peak < denoiser.workspace(request) < 1.25 * meter.peak


def test_encoder(shapes: Path) -> None:
    encoder = Flux2TextEncoder(shapes, torch.bfloat16)
    table = torch.empty(encoder.config.vocab_size, encoder.config.hidden_size, dtype=torch.bfloat16)
    encoder.module.embed_tokens.weight = torch.nn.Parameter(table, requires_grad=False)
    with LiveBytes(encoder) as meter:
        conditioning = encoder.encode("a red circle", META)
    assert conditioning.shape == (512, 3 * encoder.config.hidden_size)
    assert 1.1 * meter.peak < encoder.workspace(make_request()) < 1.25 * meter.peak


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [LARGE, Size(512, 768)])
def test_autoencoder(shapes: Path, dtype: torch.dtype, size: Size) -> None:
    autoencoder = Flux2Autoencoder(shapes, dtype)
    with LiveBytes(autoencoder) as decoding:
        autoencoder.module.decode(torch.empty(1, 32, size.height // 8, size.width // 8, dtype=dtype, device=META))
    assert 1.1 * CUDNN * decoding.peak < autoencoder.workspace(make_request(size)) < 1.3 * CUDNN * decoding.peak
    with LiveBytes(autoencoder) as encoding:
        autoencoder.module.encode(torch.empty(1, 3, size.height, size.width, dtype=dtype, device=META))
    workspace = autoencoder.workspace(make_request(Size(16, 16), (Size(64, 64), size)))
    assert 1.1 * CUDNN * encoding.peak < workspace < 1.3 * CUDNN * encoding.peak
