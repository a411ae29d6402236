"""LoRAs against diffusers with peft, and what they must leave alone."""

from __future__ import annotations

import json
import warnings
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidRequest
from lightx2v.pipeline import Pipeline
from lightx2v.stages.denoise import DenoiseStage
from lightx2v.types import ChosenLora, GenerateRequest, Latents
from lightx2v.weights.device import Moment
from lightx2v.weights.layout import ALIGNMENT
from lightx2v.weights.lora_products import TOKENS as ROWS
from tests.checkpoints import lora
from tests.parity.reference import LATENTS, PIXELS, load_reference, make_request, reference_generate

NAMES = ("peft", "stated", "trainer", "kohya")
PLAIN = make_request(steps=2)


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("loras")
    stated = {"r": 4, "lora_alpha": 6, "alpha_pattern": {"proj_out": 2, "transformer_blocks.0.attn.to_q": 9}}
    ranks = {name: 3 + index % 4 for index, name in enumerate(lora.LINEAR)}
    stated |= {"rank_pattern": ranks, "target_modules": list(lora.LINEAR)}
    header = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in stated.items()})}
    files = {
        "peft": lora.write(folder / "peft/model.safetensors", lora.peft(1)).parent,
        "stated": lora.write(folder / "stated.safetensors", lora.peft(2), header),
        "trainer": lora.write(folder / "trainer.safetensors", lora.peft(3, "diffusion_model.", lora.FUSED)),
        "kohya": lora.write(folder / "kohya.safetensors", lora.kohya(4)),
    }
    return {name: str(path) for name, path in files.items()}


def open_pipeline(checkpoint: Path, loras: dict[str, str], **settings: Any) -> Pipeline:
    engine: dict[str, Any] = {"dtype": "float32", "device": "cpu", "cpu_offload": False} | settings
    return Pipeline(EngineSettings.model_validate({"model": str(checkpoint), "loras": loras} | engine))


@pytest.fixture(scope="module")
def engine(distilled: Path, loras: dict[str, str]) -> Iterator[Pipeline]:
    with closing(open_pipeline(distilled, loras)) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def oracle(distilled: Path, loras: dict[str, str]) -> DiffusionPipeline:
    """With all of them loaded, of which peft warns."""
    pipeline = load_reference(distilled)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        for name, path in loras.items():
            pipeline.load_lora_weights(path, adapter_name=name)
    return pipeline


def denoiser(pipeline: Pipeline) -> DenoiseStage:
    stage = pipeline._stages["denoise"]
    assert isinstance(stage, DenoiseStage)
    return stage


def with_lora(name: str | None, scale: float = 1.0) -> GenerateRequest:
    return make_request(steps=2, loras=(ChosenLora(name, scale),) if name else ())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1.0, -0.6])
def test_like_diffusers(engine: Pipeline, oracle: DiffusionPipeline, name: str, scale: float) -> None:
    latents = engine.latents(with_lora(name, scale))
    oracle.set_adapters(name, scale)
    expected_latents, expected = reference_generate(oracle, PLAIN)
    assert (latents.tokens - expected_latents).abs().max().item() <= LATENTS
    picture = engine.decode(PLAIN, latents).pixels
    assert np.abs(picture.astype(int) - expected.astype(int)).max() <= PIXELS
    assert (latents.tokens - engine.latents(PLAIN).tokens).abs().max() > 0.1, "or nothing was compared"


def test_a_guided_request_with_references_of_the_other_family(dev: Path, loras: dict[str, str]) -> None:
    """Both streams of tokens, batched and cut: what enters a layer does not always lie in one piece."""
    request = make_request(80, 48, steps=2, guidance=4.0, loras=(ChosenLora("peft", 0.7),))
    reference = load_reference(dev)
    reference.load_lora_weights(loras["peft"], adapter_name="peft")
    reference.set_adapters("peft", 0.7)
    with closing(open_pipeline(dev, loras)) as pipeline:
        tokens = pipeline.latents(request).tokens
    assert (tokens - reference_generate(reference, request)[0]).abs().max().item() <= LATENTS


@pytest.mark.parametrize(
    "settings",
    [
        {"cpu_offload": True, "offload_granularity": "model"},
        {"cpu_offload": True, "offload_granularity": "block"},
        {"cpu_offload": True, "offload_granularity": "phase"},
        {"cpu_offload": True, "lazy_load": True},
        {"cpu_offload": "auto", "gpu_budget": 5_500_000},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_same_bits_under_every_setting(
    engine: Pipeline, distilled: Path, loras: dict[str, str], settings: dict[str, Any]
) -> None:
    with closing(open_pipeline(distilled, loras, **settings)) as pipeline:
        for name in ("kohya", None, "peft", "kohya"):
            request = with_lora(name)
            needed = max(size.reachable + size.activation_bytes for size in pipeline.sizes(request))
            assert needed > settings.get("gpu_budget", 0) > 0 or settings["cpu_offload"] is True, "else nothing streams"
            assert torch.equal(pipeline.latents(request).tokens, engine.latents(request).tokens), name


def test_nothing_is_left_of_it(distilled: Path, loras: dict[str, str]) -> None:
    with closing(open_pipeline(distilled, {})) as pipeline:
        never = pipeline.latents(PLAIN).tokens
    with closing(open_pipeline(distilled, loras)) as pipeline:
        stage = denoiser(pipeline)
        before = pipeline.latents(PLAIN).tokens
        weights = {name: state.clone() for name, state in stage.component.module.state_dict().items()}
        pipeline.latents(with_lora("peft"))
        assert torch.equal(pipeline.latents(PLAIN).tokens, before)
        assert torch.equal(before, never)
        for name, state in stage.component.module.state_dict().items():
            assert torch.equal(state, weights[name]), name
        assert not [layer for layer in stage.component.module.modules() if len(layer._forward_hooks) > 1]


def test_nor_after_a_failure(distilled: Path, loras: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(open_pipeline(distilled, loras)) as pipeline:
        before = pipeline.latents(PLAIN).tokens

        def fail(_: object) -> None:
            raise RuntimeError("after a step")

        with pytest.raises(RuntimeError, match="after a step"):
            pipeline.latents(with_lora("kohya"), report=fail)
        assert torch.equal(pipeline.latents(PLAIN).tokens, before)


def test_its_device_bytes_go_with_the_run(
    engine: Pipeline, loras: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a failed one. All weights are resident, so that nothing else is copied."""
    device, slabs = denoiser(engine).device, []
    copy = device.copy

    def watched(host: torch.Tensor, slab: torch.Tensor, after: Moment) -> Moment:
        slabs.append(weakref.ref(slab.untyped_storage()))
        return copy(host, slab, after)

    def fail(_: object) -> None:
        assert slabs[-1]() is not None
        raise RuntimeError("after a step")

    monkeypatch.setattr(device, "copy", watched)
    engine.latents(with_lora("peft"))
    with pytest.raises(RuntimeError, match="after a step"):
        engine.latents(with_lora("kohya"), report=fail)
    assert [slab() for slab in slabs] == [None, None]


def test_its_bytes_are_workspace(engine: Pipeline) -> None:
    stage = denoiser(engine)
    engine.latents(with_lora("peft"))
    plain, more = stage.activation_bytes(PLAIN), stage.activation_bytes(with_lora("peft"))
    stored = sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in lora.peft(1).values())
    largest_rank = 6
    assert more - plain == stored + ROWS * largest_rank * torch.float32.itemsize
    assert stage.resident == stage.reachable, "and no weights"


def test_no_scale_is_none(engine: Pipeline) -> None:
    assert torch.equal(engine.latents(with_lora("peft", 0.0)).tokens, engine.latents(PLAIN).tokens)


def test_an_unknown_name(engine: Pipeline) -> None:
    with pytest.raises(InvalidRequest, match="'water' is not served here; known are kohya, peft, stated, trainer"):
        engine.latents(with_lora("water"))


def test_half_precision(distilled: Path, loras: dict[str, str], engine: Pipeline) -> None:
    """A file's type is not the model's."""
    with closing(open_pipeline(distilled, loras, dtype="bfloat16")) as pipeline:
        made: Latents = pipeline.latents(with_lora("kohya", 0.1))
    assert made.tokens.dtype == torch.bfloat16
    assert (made.tokens.float() - engine.latents(with_lora("kohya", 0.1)).tokens).abs().mean() < 0.1
