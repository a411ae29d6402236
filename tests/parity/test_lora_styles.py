"""LoRAs in the styles of all trainers: each makes the same picture as its twin in diffusers' style, in every family."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, QwenImagePipeline, WanPipeline, ZImagePipeline
from safetensors.torch import load_file, save_file

import deployments.app
from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.registry import find_family
from lightx2v.pipeline import Pipeline
from lightx2v.types import ChosenLora, GenerateRequest
from tests.checkpoints import lora, lora_styles
from tests.parity.reference import PIXELS, make_request

KINDS = ("lokr", "loha", "diff", "dora")
ORACLES = {
    "distilled": Flux2KleinPipeline,
    "z_turbo": ZImagePipeline,
    "qwen_image": QwenImagePipeline,
    "wan": WanPipeline,
}


def build(checkpoint: Path) -> Any:
    family = find_family(checkpoint)
    return family.build("denoise", checkpoint, torch.float32, family.spec(checkpoint))


def stored(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = (checkpoint / "transformer").glob("*.safetensors")
    return {name: state.float() for file in files for name, state in load_file(file).items()}


@pytest.fixture(scope="module", params=ORACLES)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """With a file of each style."""
    checkpoint: Path = request.getfixturevalue(request.param)
    folder, layers = tmp_path_factory.mktemp(request.param), lora_styles.layers_of(build(checkpoint))
    factors = lora_styles.low_rank(layers)
    files = {"twin": lora_styles.twin(layers, factors), "twice": lora_styles.twice(layers, factors)}
    files |= {name: style(layers, factors) for name, style in lora_styles.STYLES.items()}
    for name, tensors, twin in lora_styles.kinds(layers, stored(checkpoint)):
        files |= {name: tensors, f"{name}-twin": twin}
    loras = {name: str(lora.write(folder / f"{name}.safetensors", tensors)) for name, tensors in files.items()}
    settings = {"model": str(checkpoint), "dtype": "float32", "device": "cpu", "cpu_offload": False, "loras": loras}
    with closing(Pipeline(EngineSettings.model_validate(settings))) as made:
        yield made


def picture(pipeline: Pipeline, *names: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    request: GenerateRequest = make_request(32, 32, steps=1, loras=tuple(map(ChosenLora, names)))
    return pipeline.generate(request).pixels.astype(int)


@pytest.fixture(scope="module")
def twin(pipeline: Pipeline) -> np.ndarray[Any, np.dtype[np.int64]]:
    made = picture(pipeline, "twin")
    assert np.abs(made - picture(pipeline)).max() > 10, "or nothing was compared"
    return made


@pytest.mark.parametrize("style", [*lora_styles.STYLES, "twice"])
def test_the_same_picture(pipeline: Pipeline, twin: np.ndarray[Any, np.dtype[np.int64]], style: str) -> None:
    assert np.abs(picture(pipeline, style) - twin).max() <= PIXELS


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_picture_of_another_kind(pipeline: Pipeline, kind: str) -> None:
    made = picture(pipeline, kind)
    assert np.abs(made - picture(pipeline, f"{kind}-twin")).max() <= PIXELS
    assert np.abs(made - picture(pipeline)).max() > 10, "or nothing was compared"


@pytest.mark.parametrize(
    ("family", "style"),
    [*((family, "kohya") for family in ORACLES), ("distilled", "comfy"), ("wan", "comfy"), ("wan_clip", "comfy")],
)
def test_the_twin_is_what_diffusers_makes_of_it(request: pytest.FixtureRequest, family: str, style: str) -> None:
    """Of the layers of blocks; of others it knows less."""
    layers = lora_styles.layers_of(build(request.getfixturevalue(family)))
    layers = [layer for layer in layers if "blocks" in layer.maker or "layers" in layer.maker]
    factors = lora_styles.low_rank(layers)
    twin, named = lora_styles.twin(layers, factors), lora_styles.STYLES[style](layers, factors)
    read = ORACLES[family.removesuffix("_clip")].lora_state_dict({key: state.clone() for key, state in named.items()})
    assert read.keys() == twin.keys()
    for key in (key for key in twin if "lora_A" in key):
        other = key.replace("lora_A", "lora_B")
        torch.testing.assert_close(read[other] @ read[key], twin[other] @ twin[key])


@pytest.fixture(scope="module")
def kinds_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The files of a checkpoint by kind."""

    def write(checkpoint: Path) -> dict[str, str]:
        folder, layers = tmp_path_factory.mktemp("kinds"), lora_styles.layers_of(build(checkpoint))
        made = {name: tensors for name, tensors, _ in lora_styles.kinds(layers, stored(checkpoint))}
        made["comfy"] = lora_styles.STYLES["comfy"](layers, lora_styles.low_rank(layers))
        return {name: str(lora.write(folder / f"{name}.safetensors", made[name])) for name in made}

    return write


@pytest.mark.parametrize("family", ["qwen_image", "z_turbo"])
def test_same_bits_whatever_is_resident(request: pytest.FixtureRequest, kinds_of: Any, family: str) -> None:
    """Layers on the host among them, and one LoRA after the other."""
    checkpoint = request.getfixturevalue(family)
    base = {"model": str(checkpoint), "dtype": "float32", "device": "cpu", "loras": kinds_of(checkpoint)}
    whole, streamed = (
        EngineSettings.model_validate(base | offload)
        for offload in ({"cpu_offload": False}, {"cpu_offload": True, "offload_granularity": "phase"})
    )
    made = []
    for settings in (whole, streamed):
        with closing(Pipeline(settings)) as pipeline:
            chosen: list[tuple[ChosenLora, ...]] = [(ChosenLora(name),) for name in settings.loras]
            chosen += [(ChosenLora("comfy", 0.5), ChosenLora("lokr", -0.5)), (ChosenLora("comfy", 0.25),), ()]
            requests = [make_request(32, 32, steps=1, loras=loras) for loras in chosen]
            made.append([pipeline.generate(one).pixels for one in requests])
    assert all(np.array_equal(*pair) for pair in zip(*made, strict=True))
    assert len({picture.tobytes() for picture in made[0]}) == len(made[0]), "and no two are the same"


def test_differences_of_wan(wan: Path, tmp_path: Path) -> None:
    """As in the step distillations of Wan: of biases, norms, modulations and convolutions. As in a checkpoint that has
    them in it."""
    merged = tmp_path / "merged"
    shutil.copytree(wan, merged)
    (file,) = (merged / "transformer").glob("*.safetensors")
    states, random = load_file(file), torch.Generator().manual_seed(0)
    named = {
        "blocks.0.self_attn.q.diff_b": "blocks.0.attn1.to_q.bias",
        "blocks.1.cross_attn.o.diff_b": "blocks.1.attn2.to_out.0.bias",
        "blocks.0.norm3.diff": "blocks.0.norm2.weight",
        "blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
        "blocks.1.self_attn.norm_k.diff": "blocks.1.attn1.norm_k.weight",
        "blocks.2.diff_m": "blocks.2.scale_shift_table",
        "head.diff_m": "scale_shift_table",
        "head.head.diff": "proj_out.weight",
        "head.head.diff_b": "proj_out.bias",
        "patch_embedding.diff": "patch_embedding.weight",
        "time_embedding.2.diff_b": "condition_embedder.time_embedder.linear_2.bias",
        "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
    }
    changes = {key: 0.3 * torch.randn(states[name].shape, generator=random) for key, name in named.items()}
    for key, name in named.items():
        states[name] += 0.5 * changes[key]
    save_file(states, file, {"format": "pt"})
    absent = {"blocks.0.cross_attn.norm_k_img.diff": torch.zeros(56)}
    tensors = {f"diffusion_model.{key}": change for key, change in (changes | absent).items()}
    loras = {"step": str(lora.write(tmp_path / "step.safetensors", tensors))}
    base = {"dtype": "float32", "device": "cpu", "cpu_offload": True, "offload_granularity": "block"}
    request = make_request(32, 32, frames=5, guidance=4.0, steps=2)
    with closing(Pipeline(EngineSettings.model_validate(base | {"model": str(merged)}))) as pipeline:
        expected = pipeline.generate(request).pixels.astype(int)
    with closing(Pipeline(EngineSettings.model_validate(base | {"model": str(wan), "loras": loras}))) as pipeline:
        made = pipeline.generate(replace(request, loras=(ChosenLora("step", 0.5),))).pixels.astype(int)
        plain = pipeline.generate(request).pixels.astype(int)
    assert np.abs(made - expected).max() <= PIXELS
    assert np.abs(made - plain).max() > 10, "or nothing was compared"


def test_one_for_each_of_two_transformers(wan_experts: Path, tmp_path: Path) -> None:
    """As in a checkpoint whose weights have the differences in them."""
    layers = lora_styles.layers_of(build(wan_experts))
    merged = tmp_path / "merged"
    shutil.copytree(wan_experts, merged)
    files = {}
    for part, folder, scale in (("high", "transformer", 0.5), ("low", "transformer_2", 0.25)):
        factors = lora_styles.low_rank(layers, seed=len(part))
        twin = lora_styles.twin(layers, factors)
        named = lora_styles.STYLES["comfy"](layers, factors)
        files[part] = {"path": str(lora.write(tmp_path / f"{part}.safetensors", named)), "scale": scale}
        (file,) = (merged / folder).glob("*.safetensors")
        states = load_file(file)
        for key in (key for key in twin if "lora_A" in key):
            name = key.removeprefix("transformer.").replace(".lora_A.weight", ".weight")
            states[name] += 0.8 * scale * twin[key.replace("lora_A", "lora_B")] @ twin[key]
        save_file(states, file, {"format": "pt"})
    base = {"dtype": "float32", "device": "cpu", "cpu_offload": False}
    settings = base | {"model": str(wan_experts), "loras": {"light": files, "first": {"high": files["high"]}}}
    request = make_request(64, 48, frames=5, guidance=1.0, steps=3, shift=5.0)
    with closing(Pipeline(EngineSettings.model_validate(base | {"model": str(merged)}))) as pipeline:
        expected = pipeline.generate(request).pixels.astype(int)
    with closing(Pipeline(EngineSettings.model_validate(settings))) as pipeline:
        light, first, plain = (
            pipeline.generate(replace(request, loras=loras)).pixels.astype(int)
            for loras in ((ChosenLora("light", 0.8),), (ChosenLora("first", 0.8),), ())
        )
    assert np.abs(light - expected).max() <= PIXELS
    assert np.abs(first - expected).max() > 10, "the second has a part in it"
    assert np.abs(plain - first).max() > 10, "and the first"


def test_a_bad_one_refuses_the_start_if_that_is_asked_for(wan: Path, tmp_path: Path) -> None:
    bad = lora.write(tmp_path / "bad.safetensors", {"lora_unet_down_blocks_0.lora_down.weight": torch.ones(1)})
    values = {"model": str(wan), "device": "cpu", "loras": {"bad": str(bad)}, "strict_loras": True}
    with pytest.raises(InvalidCheckpoint, match="lora_unet_down_blocks_0"):
        Pipeline(EngineSettings.model_validate(values))
    with pytest.raises(InvalidCheckpoint, match="lora_unet_down_blocks_0"):
        deployments.app.build(values)
