"""Qwen-Image's parts, each against its counterpart in diffusers, in fp32; and what they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline
from PIL import Image

from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidCheckpoint, InvalidRequest, NonFinite
from lightx2v.models.component import Component
from lightx2v.models.qwen_image.autoencoder import QwenImageAutoencoder
from lightx2v.models.qwen_image.denoiser import SCHEDULES, QwenImageDenoiser
from lightx2v.models.qwen_image.encoder import QwenImageTextEncoder
from lightx2v.models.qwen_image.schedule import read_schedule, timesteps
from lightx2v.models.qwen_image.spec import read_spec
from lightx2v.models.registry import find_family
from lightx2v.models.spec import ModelSpec
from lightx2v.residency.lease import Grant
from lightx2v.stages.build import load_stage
from lightx2v.stages.interface import Control, StageInputs
from lightx2v.types import Conditioning, GenerateRequest, Latents, Picture, Size
from lightx2v.weights.device import CpuDevice
from lightx2v.weights.host_copy import OnDisk
from lightx2v.weights.index import read_index
from lightx2v.weights.layout import make_layout, view
from tests.checkpoints.qwen_image import HIDDEN, write_configurations
from tests.parity.reference import LATENTS, load_reference, make_request
from tests.visits import finish, take_steps

CPU = torch.device("cpu")
Part = Callable[[Path, torch.dtype, ModelSpec], Component]
PARTS: tuple[Part, ...] = (QwenImageTextEncoder, QwenImageDenoiser, QwenImageAutoencoder)


@pytest.fixture(scope="module")
def reference(qwen_image: Path) -> QwenImagePipeline:
    return load_reference(qwen_image)


@pytest.fixture(scope="module")
def denoiser(qwen_image: Path) -> QwenImageDenoiser:
    denoiser: QwenImageDenoiser = load(QwenImageDenoiser(qwen_image, torch.float32, read_spec(qwen_image)), qwen_image)
    return denoiser


@pytest.fixture(scope="module")
def encoder(qwen_image: Path) -> QwenImageTextEncoder:
    encoder: QwenImageTextEncoder = load(
        QwenImageTextEncoder(qwen_image, torch.float32, read_spec(qwen_image)), qwen_image
    )
    return encoder


@pytest.fixture(scope="module")
def autoencoder(qwen_image: Path) -> QwenImageAutoencoder:
    autoencoder: QwenImageAutoencoder = load(
        QwenImageAutoencoder(qwen_image, torch.float32, read_spec(qwen_image)), qwen_image
    )
    return autoencoder


def load(component: Any, checkpoint: Path) -> Any:
    """All weights as the engine reads them."""
    layout = make_layout(component, read_index(checkpoint / component.folder), ())
    source = OnDisk(layout)
    states = {entry.name: view(source.unit(layout.rest), entry) for entry in layout.rest.entries}
    states |= {entry.name: source.state(entry) for entry in layout.host.entries}
    component.module.load_state_dict(states, strict=True, assign=True)
    return component


def features(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_allocated(qwen_image: Path, part: Part) -> None:
    states = part(qwen_image, torch.bfloat16, read_spec(qwen_image)).module.state_dict().values()
    assert {(state.device.type, state.dtype) for state in states} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("prompt", ["", " ", "a red circle", "{}", "a red circle " * 300])
def test_encoder(encoder: QwenImageTextEncoder, reference: QwenImagePipeline, prompt: str) -> None:
    expected, mask = reference.encode_prompt(prompt, max_sequence_length=512)
    encoded = finish(encoder.encode(prompt, (), CPU))
    assert mask is None
    assert encoded.shape == expected[0].shape
    assert (encoded - expected[0]).abs().max() <= LATENTS


def test_the_published_text_encoder_is_read(tmp_path: Path) -> None:
    """It is described in the words of an older version of transformers."""
    checkpoint = write_configurations(tmp_path)
    config = QwenImageTextEncoder(checkpoint, torch.bfloat16, read_spec(checkpoint)).config
    assert config.rope_parameters["mrope_section"] == [16, 24, 24]
    assert config.rope_parameters["rope_theta"] == 1e6
    assert config.num_hidden_layers == 28


@pytest.mark.parametrize(("rows", "columns", "length"), [(4, 4, 5), (3, 5, 1), (1, 10, 512), (7, 2, 40)])
def test_velocity(
    denoiser: QwenImageDenoiser, reference: QwenImagePipeline, rows: int, columns: int, length: int
) -> None:
    request = make_request(16 * columns, 16 * rows)
    text, tokens = features(length), torch.randn(1, rows * columns, 64, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([0.7312])
    with torch.no_grad():
        state = denoiser.start(request, Conditioning(text), (), CPU)
        conditions = state.conditions._replace(times=time, modulations=denoiser.module.tabulate(time))
        predicted = finish(denoiser.velocity(replace(state, latents=tokens, conditions=conditions)))
        expected = reference.transformer(
            hidden_states=tokens, encoder_hidden_states=text[None], timestep=time, img_shapes=[[(1, rows, columns)]]
        ).sample
    assert (predicted - expected).abs().max() <= LATENTS


def test_branches_do_not_see_each_other(denoiser: QwenImageDenoiser) -> None:
    towards, away, other = features(9), features(4, seed=1), features(30, seed=2)
    tokens, time = torch.randn(1, 12, 64), torch.tensor([0.5])
    with torch.no_grad():
        modulation = denoiser.module.tabulate(time)[0]

        def branches(*texts: torch.Tensor) -> torch.Tensor:
            lengths = tuple(map(len, texts))
            ropes = denoiser._ropes([(3, 4)], lengths)
            image = tokens.expand(len(texts), -1, -1)
            text = torch.cat(texts)[None]
            velocity: torch.Tensor = finish(denoiser.module(image, text, 12, lengths, time, modulation, ropes))
            return velocity

        both, swapped, alone = branches(towards, away), branches(other, away), branches(away)
    assert torch.allclose(both[1], swapped[1], atol=LATENTS, rtol=0)
    assert torch.allclose(both[1], alone[0], atol=LATENTS, rtol=0)
    assert not torch.allclose(both[0], swapped[0], atol=1e-2)


def test_modulation_has_the_bits_of_the_straight_way(denoiser: QwenImageDenoiser, reference: QwenImagePipeline) -> None:
    times = timesteps(denoiser.schedule.levels(16, 7), torch.float32)
    with torch.no_grad():
        table = denoiser.module.tabulate(times)
        for step, time in enumerate(times.split(1)):
            embedded = reference.transformer.time_text_embed(time, torch.empty(0))
            for index, block in enumerate(reference.transformer.transformer_blocks):
                assert torch.equal(table[step, index, 0].flatten(), block.img_mod(embedded)[0])
                assert torch.equal(table[step, index, 1].flatten(), block.txt_mod(embedded)[0])


def test_modulation_is_made_once_for_a_schedule(qwen_image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser: QwenImageDenoiser = load(QwenImageDenoiser(qwen_image, torch.float32, read_spec(qwen_image)), qwen_image)
    made: list[int] = []
    tabulate = denoiser.module.tabulate

    def counted(times: torch.Tensor) -> torch.Tensor:
        made.append(len(times))
        return tabulate(times)

    monkeypatch.setattr(denoiser.module, "tabulate", counted)

    def final(steps: int, width: int = 64) -> torch.Tensor:
        *_, latents = take_steps(denoiser, make_request(width, steps=steps), Conditioning(features(5)), (), CPU)
        return latents.tokens

    first, again = final(2), final(2)
    assert made == [2]
    assert torch.equal(first, again)
    final(2, width=80)
    assert made == [2, 2], "another number of tokens is another schedule"
    for steps in range(3, 3 + SCHEDULES):
        final(steps)
    assert torch.equal(final(2), first)
    assert made == [2, 2, *range(3, 3 + SCHEDULES), 2], "a few are kept"


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_block_is_used_once_per_step(qwen_image: Path, guidance: float) -> None:
    denoiser: QwenImageDenoiser = load(QwenImageDenoiser(qwen_image, torch.float32, read_spec(qwen_image)), qwen_image)
    entered: list[str] = []
    for name in denoiser.blocks:
        denoiser.module.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: entered.append(name))
    conditioning = Conditioning(features(5), features(3) if guidance > 1 else None)
    take_steps(denoiser, make_request(steps=2, guidance=guidance), conditioning, (), CPU)
    assert entered == list(denoiser.blocks) * 2


@pytest.mark.parametrize("tokens", [1, 256, 4096, 20000])
@pytest.mark.parametrize("steps", [2, 4, 50])
def test_schedule(qwen_image: Path, reference: QwenImagePipeline, tokens: int, steps: int) -> None:
    schedule = read_schedule(qwen_image)
    reference.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=schedule.shift(tokens))
    levels = schedule.levels(tokens, steps)
    assert torch.equal(levels, reference.scheduler.sigmas)
    assert torch.equal(timesteps(levels, torch.bfloat16), reference.scheduler.timesteps.bfloat16() / 1000)


def test_published_noise_levels(qwen_image: Path) -> None:
    schedule = read_schedule(qwen_image)
    assert schedule.shift(4096) == pytest.approx(0.693548, abs=1e-6)
    assert schedule.levels(4096, 50)[[0, 1, 2, 48, 49, 50]].tolist() == pytest.approx(
        [1, 0.98970, 0.97919, 0.05848, 0.02, 0], abs=1e-5
    )


def test_one_step_goes_all_the_way(qwen_image: Path) -> None:
    """The reference's schedule has no number for it."""
    assert read_schedule(qwen_image).levels(4096, 1).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("size", [(2, 2), (6, 4), (2, 14)])
def test_decoder(autoencoder: QwenImageAutoencoder, reference: QwenImagePipeline, size: tuple[int, int]) -> None:
    latents = torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference.vae.decode(latents[:, :, None]).sample[:, :, 0]
        decoded = autoencoder.module(latents)
    assert expected.std() > 0.1
    assert (decoded - expected).abs().max() <= LATENTS


def test_in_half_precision(qwen_image: Path) -> None:
    """The whole way, in the type that is served."""
    built = (part(qwen_image, torch.bfloat16, read_spec(qwen_image)) for part in PARTS)
    encoder, denoiser, autoencoder = (load(component, qwen_image) for component in built)
    request = make_request(80, 48, guidance=4.0)
    texts = (finish(encoder.encode(prompt, (), CPU)) for prompt in (request.prompt, encoder.negative(request)))
    *_, latents = take_steps(denoiser, request, Conditioning(*texts), (), CPU)
    assert latents.tokens.dtype == torch.bfloat16
    assert (latents.rows, latents.columns) == (3, 5)
    assert autoencoder.decode(latents).size == Size(80, 48)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_make_no_picture(autoencoder: QwenImageAutoencoder, value: float) -> None:
    tokens = torch.zeros(12, 64)
    tokens[3, 4] = value
    with pytest.raises(NonFinite):
        autoencoder.decode(Latents(tokens, 3, 4))


def test_spec(qwen_image: Path, tmp_path: Path) -> None:
    expected = ModelSpec(Size(1024, 1024), steps=50, guidance=4.0, multiple=16, takes_shift=True)
    assert read_spec(qwen_image) == expected
    assert expected.edit_size([]) == expected.size
    write_configurations(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"num_inference_steps": 4, "guidance_scale": 1, "size": "96x64"}')
    overridden = read_spec(tmp_path)
    assert overridden == replace(expected, size=Size(96, 64), steps=4, guidance=1.0)


def test_guidance_needs_no_negative_prompt(encoder: QwenImageTextEncoder) -> None:
    assert encoder.is_guided(make_request(guidance=1.01))
    assert not encoder.is_guided(make_request(guidance=1.0, negative_prompt="blurry"))
    assert encoder.negative(make_request()) == " "
    assert encoder.negative(make_request(negative_prompt="blurry")) == "blurry"


def test_a_picture_is_refused(qwen_image: Path, autoencoder: QwenImageAutoencoder) -> None:
    with pytest.raises(InvalidRequest, match="from text alone"):
        find_family(qwen_image).spec(qwen_image).fit_reference(Image.new("RGB", (64, 64)))
    with pytest.raises(InvalidRequest, match="from text alone"):
        autoencoder.encode(make_request(), Picture(np.zeros((64, 64, 3), np.uint8)), CPU)


@pytest.mark.parametrize(
    ("part", "name", "values", "message"),
    [
        (QwenImageDenoiser, "transformer/config.json", {"use_layer3d_rope": True}, "use_layer3d_rope"),
        (QwenImageDenoiser, "transformer/config.json", {"guidance_embeds": True}, "guidance_embeds"),
        (QwenImageDenoiser, "scheduler/scheduler_config.json", {"use_dynamic_shifting": False}, "exponential"),
        (QwenImageDenoiser, "scheduler/scheduler_config.json", {"time_shift_type": "linear"}, "exponential"),
    ],
)
def test_another_model_is_refused(
    qwen_image: Path, tmp_path: Path, part: Part, name: str, values: dict[str, Any], message: str
) -> None:
    shutil.copytree(qwen_image, tmp_path, dirs_exist_ok=True)
    file = tmp_path / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(InvalidCheckpoint, match=message):
        part(tmp_path, torch.float32, read_spec(tmp_path))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (QwenImageTextEncoder, "text_encoder/config.json"),
        (QwenImageTextEncoder, "tokenizer"),
        (QwenImageDenoiser, "transformer/config.json"),
        (QwenImageDenoiser, "scheduler/scheduler_config.json"),
        (QwenImageAutoencoder, "vae/config.json"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, part: Part, name: str) -> None:
    write_configurations(tmp_path)
    (tmp_path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(InvalidCheckpoint, match=name):
        part(tmp_path, torch.float32, read_spec(tmp_path))


def test_transformer_and_autoencoder_import_neither_diffusers_nor_transformers() -> None:
    code = (
        "import sys, lightx2v.models.qwen_image.denoiser, lightx2v.models.qwen_image.autoencoder\n"
        "assert not {'diffusers', 'transformers'} & set(sys.modules), 'seconds of start-up'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_spec_is_free_of_torch() -> None:
    code = "import sys, lightx2v.models.qwen_image.spec\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_seed_repeats(denoiser: QwenImageDenoiser) -> None:
    def final(request: GenerateRequest) -> torch.Tensor:
        *_, latents = take_steps(denoiser, request, Conditioning(features(5)), (), CPU)
        return latents.tokens

    assert torch.equal(final(make_request(seed=1)), final(make_request(seed=1)))
    assert not torch.equal(final(make_request(seed=1)), final(make_request(seed=2)))


def test_modulations_are_counted_when_they_cross_the_link(qwen_image: Path) -> None:
    stage: Any = load_stage("denoise", EngineSettings(model=str(qwen_image)), CpuDevice())
    modulations = stage.component.module.modulations.state_dict().values()
    crossing = sum(state.numel() * stage.component.dtype.itemsize for state in modulations)
    grant, conditioning = Grant(stage.reachable, 0, 0, stage.reachable), Conditioning(features(5))
    for steps, tables in ((2, 1), (2, 1), (3, 2)):
        request = make_request(64, steps=steps)
        stage.perform(grant, "run", request, StageInputs(conditioning=conditioning), Control())
        assert stage.device.h2d_bytes == stage.reachable + tables * crossing
    stage.close()
