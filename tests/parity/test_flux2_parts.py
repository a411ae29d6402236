"""FLUX.2's parts without a reference to compare with: what is read, what is refused, what repeats."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from lightx2v.errors import InvalidCheckpoint, NonFinite
from lightx2v.models.component import Component
from lightx2v.models.flow import euler_step
from lightx2v.models.flux2.autoencoder import Flux2Autoencoder
from lightx2v.models.flux2.denoiser import Flux2Denoiser
from lightx2v.models.flux2.encoder import Flux2TextEncoder
from lightx2v.models.flux2.schedule import noise_levels
from lightx2v.models.flux2.spec import Flux2Spec, read_spec
from lightx2v.models.registry import find_family
from lightx2v.models.sampler import sample
from lightx2v.models.visits import Pause
from lightx2v.types import Conditioning, GenerateRequest, Latents, Picture, Size
from tests.checkpoints.flux2 import write_dev, write_klein
from tests.parity.reference import bind
from tests.visits import finish, take_steps

CPU = torch.device("cpu")
Part = Callable[[Path, torch.dtype, Flux2Spec], Component]


def text_encoder(checkpoint: Path, dtype: torch.dtype, spec: Flux2Spec) -> Flux2TextEncoder:
    encoder = find_family(checkpoint).build("encode", checkpoint, dtype, spec)
    assert isinstance(encoder, Flux2TextEncoder)
    return encoder


PARTS: tuple[Part, ...] = (text_encoder, Flux2Denoiser, Flux2Autoencoder)


@pytest.fixture(scope="module", params=[write_klein, write_dev])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = request.param(tmp_path_factory.mktemp("flux2"))
    return folder


def make_request(**fields: object) -> GenerateRequest:
    return replace(GenerateRequest("unit", "a red circle", Size(64, 48), steps=3, seed=5), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_allocated(checkpoint: Path, part: Part) -> None:
    module = part(checkpoint, torch.bfloat16, read_spec(checkpoint)).module
    states = module.state_dict()
    assert {state.device.type for state in states.values()} == {"meta"}
    assert {state.dtype for state in states.values() if state.is_floating_point()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("part", PARTS)
def test_blocks_are_entered_by_call_in_their_order(checkpoint: Path, part: Part) -> None:
    """And so are their children that hold weights, lists aside, which never run themselves."""
    component = bind(part(checkpoint, torch.float32, read_spec(checkpoint)), checkpoint)
    entered: list[str] = []
    for name, module in component.module.named_modules():
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: entered.append(name))
    run(component)
    first = list(dict.fromkeys(name for name in entered if name in component.blocks))
    assert first == list(component.blocks)
    children = [
        f"{block}.{name}"
        for block in component.blocks
        for name, child in component.module.get_submodule(block).named_children()
        if child.state_dict() and not isinstance(child, torch.nn.ModuleList)
    ]
    assert set(children) <= set(entered)


def run(component: Component) -> None:
    if isinstance(component, Flux2TextEncoder):
        finish(component.encode("a red circle", (), CPU))
    elif isinstance(component, Flux2Denoiser):
        take_steps(component, make_request(), Conditioning(torch.zeros(8, 96)), (), CPU)
    elif isinstance(component, Flux2Autoencoder):
        component.decode(component.encode(make_request(), Picture(np.zeros((64, 64, 3), np.uint8)), CPU))


def test_the_encoder_reads_three_quarters_of_the_layers_no_head_and_no_vision(checkpoint: Path) -> None:
    encoder = text_encoder(checkpoint, torch.float32, read_spec(checkpoint))
    config = json.loads((checkpoint / "text_encoder/config.json").read_text())
    layers = config.get("text_config", config)["num_hidden_layers"]
    read = {encoder.weights.source(name) for name in encoder.module.state_dict()} - {
        encoder.weights.source("norm.weight")
    }
    with safe_open(checkpoint / "text_encoder/model.safetensors", "pt") as file:
        unread = set(file.keys()) - read
    assert encoder.weights.unreachable == {"norm.weight"}
    assert len(encoder.blocks) == 3 * layers // 4
    rest = {name.removeprefix(encoder.prefix) for name in unread if name.startswith(encoder.prefix)} - {"norm.weight"}
    assert {int(name.split(".")[1]) for name in rest} == set(range(len(encoder.blocks), layers))
    assert all(name.startswith(encoder.prefix) for name in read), "the head and the vision tower lie elsewhere"


def test_two_prompts_need_a_base_model(checkpoint: Path, distilled: Path, tmp_path: Path) -> None:
    assert not text_encoder(checkpoint, torch.float32, read_spec(checkpoint)).is_guided(make_request(guidance=4.0))
    shutil.copytree(distilled, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline"}')
    base = text_encoder(tmp_path, torch.float32, read_spec(tmp_path))
    assert base.is_guided(make_request(guidance=1.01))
    assert not base.is_guided(make_request(guidance=1.0))


def test_the_tokenizer_may_take_less_than_512(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer/tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 64}))
    encoder = bind(text_encoder(tmp_path, torch.float32, read_spec(tmp_path)), tmp_path)
    usual = text_encoder(checkpoint, torch.float32, read_spec(checkpoint))
    assert finish(encoder.encode("a red circle " * 99, (), CPU)).shape == (64, 96)
    assert encoder.workspace(make_request()) < usual.workspace(make_request())


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (text_encoder, "text_encoder/config.json"),
        (text_encoder, "tokenizer"),
        (Flux2Denoiser, "transformer/config.json"),
        (Flux2Autoencoder, "vae/config.json"),
    ],
)
def test_a_missing_file_is_named(checkpoint: Path, tmp_path: Path, part: Part, name: str) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(InvalidCheckpoint, match=name):
        part(tmp_path, torch.float32, read_spec(tmp_path))


def test_a_text_encoder_of_too_few_layers(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "text_encoder/config.json"
    values = json.loads(file.read_text())
    values.get("text_config", values)["num_hidden_layers"] = 20
    file.write_text(json.dumps(values))
    with pytest.raises(InvalidCheckpoint, match="20 layers"):
        text_encoder(tmp_path, torch.float32, read_spec(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_make_no_picture(checkpoint: Path, value: float) -> None:
    autoencoder = bind(Flux2Autoencoder(checkpoint, torch.float32, read_spec(checkpoint)), checkpoint)
    tokens = torch.zeros(12, 32)
    tokens[3, 4] = value
    with pytest.raises(NonFinite):
        autoencoder.decode(Latents(tokens, 3, 4))


def test_a_request_is_repeatable_and_seeds_differ(checkpoint: Path) -> None:
    denoiser = bind(Flux2Denoiser(checkpoint, torch.bfloat16, read_spec(checkpoint)), checkpoint)
    text = Conditioning(torch.randn(8, 96, generator=torch.Generator().manual_seed(0)).bfloat16())

    def final(seed: int) -> torch.Tensor:
        *_, latents = take_steps(denoiser, make_request(seed=seed), text, (), CPU)
        assert latents.tokens.shape == (latents.rows * latents.columns, 32)
        assert (latents.rows, latents.columns) == (3, 4)
        assert latents.tokens.dtype == torch.bfloat16
        return latents.tokens

    first, other, again = final(1), final(2), final(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_giving_up_between_two_steps(checkpoint: Path) -> None:
    denoiser = bind(Flux2Denoiser(checkpoint, torch.float32, read_spec(checkpoint)), checkpoint)
    state = denoiser.start(make_request(), Conditioning(torch.zeros(8, 96)), (), CPU)
    steps = sample(state, denoiser.velocity, lambda: None)
    with torch.no_grad():
        while next(steps) is not Pause.STEP:
            pass
    steps.close()
    assert state.step == 1


@given(tokens=st.integers(1, 20000), steps=st.integers(1, 100))
def test_noise_falls_from_all_to_none(tokens: int, steps: int) -> None:
    levels = noise_levels(tokens, steps)
    assert levels.dtype == torch.float32
    assert len(levels) == steps + 1
    assert levels[[0, -1]].tolist() == [1.0, 0.0]
    assert (levels.diff() < 0).all()


def test_published_noise_levels() -> None:
    """Of 4 and of 50 steps at 1024 x 1024."""
    assert noise_levels(4096, 4).tolist() == pytest.approx([1, 0.96738, 0.90814, 0.76720, 0], abs=1e-5)
    assert noise_levels(4096, 50)[[1, 49]].tolist() == pytest.approx([0.99731, 0.13372], abs=1e-5)


def test_a_step_rounds_once() -> None:
    sample, velocity = torch.tensor([1.0]).bfloat16(), torch.tensor([1.0]).bfloat16()
    assert euler_step(sample, velocity, 0.5, 0.496).item() == torch.tensor(0.996).bfloat16().item()


def test_the_transformer_imports_neither_diffusers_nor_transformers() -> None:
    code = (
        "import sys, lightx2v.models.flux2.denoiser\n"
        "assert not {'diffusers', 'transformers'} & set(sys.modules), 'seconds of start-up'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_text_encoder_brings_no_vision(checkpoint: Path) -> None:
    """Nor diffusers: both are seconds of start-up, and what dev's processor needs is not installed."""
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from lightx2v.models.registry import find_family\n"
        f"checkpoint = Path({str(checkpoint)!r})\n"
        "family = find_family(checkpoint)\n"
        "encoder = family.build('encode', checkpoint, torch.float32, family.spec(checkpoint))\n"
        "encoder._tokenise('a red circle')\n"
        "print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = run.stdout.split()
    assert "lightx2v.models.flux2.encoder" in loaded
    assert not [name for name in loaded if name.startswith(("diffusers", "torchvision"))]
    assert not [name for name in loaded if "modeling_pixtral" in name or "mistral3" in name]
