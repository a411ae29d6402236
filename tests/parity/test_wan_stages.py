"""Each part of Wan on its own against diffusers and transformers."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, WanImageToVideoPipeline, WanPipeline
from safetensors.torch import load_file

from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidRequest, NonFinite
from lightx2v.layers.rope import rope_table
from lightx2v.models.reference_image import make_reference
from lightx2v.models.wan.autoencoder import WanAutoencoder
from lightx2v.models.wan.condition import PictureChannels
from lightx2v.models.wan.denoiser import WanDenoiser
from lightx2v.models.wan.encoder import WanTextEncoder
from lightx2v.models.wan.latents import to_grid
from lightx2v.models.wan.schedule import Schedule
from lightx2v.models.wan.spec import read_spec
from lightx2v.models.wan.transformer import WanShape, WanTransformer
from lightx2v.residency.lease import Grant
from lightx2v.stages.encode import EncodeStage
from lightx2v.stages.interface import Control, StageInputs
from lightx2v.types import Conditioning, Latents, Picture, Size
from lightx2v.weights.device import CpuDevice
from lightx2v.weights.index import read_index
from lightx2v.weights.layout import make_layout
from tests.checkpoints.wan import make_transformer
from tests.parity.reference import LATENTS, PIXELS, bind, load_reference, make_image, make_request
from tests.visits import finish, take_steps

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def oracle(wan: Path) -> WanPipeline:
    return load_reference(wan)


@pytest.fixture(scope="module")
def clip_oracle(wan_clip: Path) -> WanImageToVideoPipeline:
    return load_reference(wan_clip)


@pytest.fixture(scope="module")
def i2v_oracle(wan_i2v: Path) -> WanImageToVideoPipeline:
    return load_reference(wan_i2v)


@pytest.mark.parametrize(
    "prompt",
    ["", "a red circle", "  été\n &amp;lt; “blue” ✓ ", "a red circle " * 50, "square " * 700],
    ids=["no", "short", "odd", "long", "cut"],
)
def test_conditioning(wan: Path, oracle: WanPipeline, prompt: str) -> None:
    expected = oracle.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=512)[0][0]
    encoder = bind(WanTextEncoder(wan, torch.float32, read_spec(wan)), wan)
    conditioning = finish(encoder.encode(prompt, (), CPU))
    torch.testing.assert_close(conditioning, expected[: len(conditioning)], rtol=0, atol=LATENTS)
    assert not expected[len(conditioning) :].any()


@pytest.mark.parametrize(("width", "height"), [(64, 64), (301, 200), (100, 399)])
def test_what_the_image_encoder_sees(
    wan_clip: Path, clip_oracle: WanImageToVideoPipeline, width: int, height: int
) -> None:
    image = make_image(6, width, height)
    expected = clip_oracle.encode_image(image, CPU)[0]
    reference = make_reference(image, read_spec(wan_clip))
    assert reference.encoder_view is not None
    seen = bind(WanTextEncoder(wan_clip, torch.float32, read_spec(wan_clip)), wan_clip).look(
        (reference.encoder_view,), CPU
    )
    torch.testing.assert_close(seen, expected, rtol=0, atol=LATENTS)


def test_a_prompt_is_known_whatever_the_picture(wan_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is looked at anew."""
    encoder = WanTextEncoder(wan_clip, torch.float32, read_spec(wan_clip))
    request = make_request(frames=5, guidance=5.0, references=(Size(64, 64),))
    stage = EncodeStage(
        encoder,
        [wan_clip / folder for folder in encoder.weights.folders],
        EngineSettings(dtype="float32"),
        CpuDevice(),
        request,
    )
    encode = Mock(wraps=encoder.encode)
    monkeypatch.setattr(encoder, "encode", encode)
    pictures = [Picture(np.asarray(make_image(seed, 224, 224))) for seed in (0, 1)]
    grant = Grant(stage.reachable, 0, 0, stage.reachable)
    first, second = (stage.perform(grant, "run", request, StageInputs((picture,)), Control()) for picture in pictures)
    assert encode.call_count == 2
    assert stage.recall(request) is None
    assert torch.equal(first.positive, second.positive)
    assert first.image_features is not None
    assert second.image_features is not None
    assert not torch.equal(first.image_features, second.image_features)
    stage.close()


@pytest.mark.parametrize("batch", [1, 2])
def test_one_transformer_call(batch: int) -> None:
    expected_of = make_transformer()
    shape = WanShape(**{field.name: expected_of.config[field.name] for field in fields(WanShape)})
    module = WanTransformer(shape)
    module.load_state_dict(expected_of.state_dict())
    latents, text, time = torch.randn(batch, 16, 3, 4, 6), torch.randn(batch, 512, shape.text_dim), torch.tensor([750])
    rope = rope_table(torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(3)), shape.axes, 10000.0)
    with torch.no_grad():
        expected = expected_of(latents, time.expand(batch), text, return_dict=False)[0]
        torch.testing.assert_close(finish(module(latents, text, time.float(), rope)), expected, rtol=0, atol=LATENTS)


def test_a_timestep_for_every_frame() -> None:
    """As the reference has it for every token."""
    expected_of = make_transformer()
    shape = WanShape(**{field.name: expected_of.config[field.name] for field in fields(WanShape)})
    module = WanTransformer(shape)
    module.load_state_dict(expected_of.state_dict())
    latents, text, times = torch.randn(2, 16, 3, 4, 6), torch.randn(2, 512, shape.text_dim), torch.tensor([0, 750, 20])
    rope = rope_table(torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(3)), shape.axes, 10000.0)
    with torch.no_grad():
        expected = expected_of(latents, times.repeat_interleave(6).expand(2, -1), text, return_dict=False)[0]
        torch.testing.assert_close(finish(module(latents, text, times.float(), rope)), expected, rtol=0, atol=LATENTS)


@pytest.mark.parametrize("batch", [1, 2])
def test_one_transformer_call_that_sees_a_picture(batch: int) -> None:
    expected_of = make_transformer(image_dim=20, added_kv_proj_dim=56)
    shape = WanShape(**{field.name: expected_of.config[field.name] for field in fields(WanShape)})
    module = WanTransformer(shape)
    module.load_state_dict(expected_of.state_dict())
    latents, text, time = torch.randn(batch, 16, 3, 4, 6), torch.randn(batch, 512, shape.text_dim), torch.tensor([750])
    seen = torch.randn(batch, 257, 20)
    rope = rope_table(torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(3)), shape.axes, 10000.0)
    with torch.no_grad():
        expected = expected_of(latents, time.expand(batch), text, seen, return_dict=False)[0]
        ours = finish(module(latents, text, time.float(), rope, seen))
        torch.testing.assert_close(ours, expected, rtol=0, atol=LATENTS)


@pytest.mark.parametrize("variant", ["wan", "wan_clip"])
def test_what_is_precise_in_half_precision(variant: str, request: pytest.FixtureRequest) -> None:
    """The same states as in the reference, bit for bit, and nearly the same velocity."""
    checkpoint: Path = request.getfixturevalue(variant)
    expected_of = DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.bfloat16).transformer
    denoiser: Any = WanDenoiser(checkpoint, torch.bfloat16, read_spec(checkpoint))
    layout = make_layout(denoiser, read_index(checkpoint / "transformer"), denoiser.blocks)
    dtypes = {entry.name: entry.dtype for unit in layout.units for entry in unit.entries}
    assert dtypes == {name: state.dtype for name, state in expected_of.state_dict().items()}
    assert dtypes == {name: state.dtype for name, state in denoiser.module.state_dict().items()}
    bind(denoiser, checkpoint)
    channels, features = denoiser.shape.in_channels, denoiser.shape.image_dim
    latents = torch.randn(1, channels, 1, 4, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    seen = torch.ones(1, 257, features).bfloat16() if features else None
    text, time = torch.zeros(1, 512, denoiser.shape.text_dim).bfloat16(), torch.tensor([500])
    rope = rope_table(torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(2)), denoiser.shape.axes, 1e4)
    with torch.no_grad():
        expected = expected_of(latents, time, text, seen, return_dict=False)[0]
        ours = finish(denoiser.module(latents, text, time.float(), rope, seen))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(("steps", "expected"), [(4, [999, 900, 750, 500]), (1, [999])])
def test_the_schedule(wan: Path, steps: int, expected: list[int]) -> None:
    assert Schedule(wan, read_spec(wan)).stepper(steps).timesteps.tolist() == expected


def test_noise_is_drawn_as_the_reference_draws_it(wan: Path, oracle: WanPipeline) -> None:
    """With a velocity of zero the solver scales the noise, and no more."""
    denoiser = bind(WanDenoiser(wan, torch.float32, read_spec(wan)), wan)
    for parameter in denoiser.module.parameters():
        parameter.zero_()
    request = make_request(112, 64, frames=9, steps=1, seed=2**63 - 1)
    conditioning = Conditioning(torch.zeros(1, denoiser.shape.text_dim))
    (latents,) = take_steps(denoiser, request, conditioning, (), CPU)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    expected = oracle.prepare_latents(1, 16, 64, 112, 9, torch.float32, CPU, generator)[0].flatten(1).T
    assert (latents.frames, latents.rows, latents.columns) == (3, 8, 14)
    torch.testing.assert_close(latents.tokens, expected)


@pytest.mark.parametrize("frames", [1, 4])
def test_decoded_video(wan: Path, oracle: WanPipeline, frames: int) -> None:
    latents = torch.randn(16, frames, 4, 6, generator=torch.Generator().manual_seed(1))
    shift, scale = (torch.tensor(oracle.vae.config[f"latents_{name}"]).view(-1, 1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = oracle.vae.decode((latents * scale + shift)[None]).sample[0].permute(1, 2, 3, 0)
    autoencoder = bind(WanAutoencoder(wan, torch.float32, read_spec(wan)), wan)
    made = autoencoder.decode(Latents(latents.flatten(1).T, 4, 6, frames))
    assert made.pixels.shape[-3:] == (32, 48, 3)
    pixels = torch.from_numpy(made.pixels).reshape(expected.shape)
    assert (pixels - (expected * 0.5 + 0.5) * 255).abs().max() <= 0.5 * PIXELS + 0.01


def test_the_order_of_latents_in_memory_does_not_show(wan: Path) -> None:
    """It is another after they have crossed from process to process."""
    autoencoder = bind(WanAutoencoder(wan, torch.float32, read_spec(wan)), wan)
    tokens = torch.randn(16, 3 * 4 * 6, generator=torch.Generator().manual_seed(1)).T
    here, there = (autoencoder.decode(Latents(given, 4, 6, 3)).pixels for given in (tokens, tokens.contiguous()))
    assert np.array_equal(here, there)


def test_a_decoder_that_fails_remembers_nothing(wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = bind(WanAutoencoder(wan, torch.float32, read_spec(wan)), wan)
    decoder, calls = autoencoder.module.decoder.forward, []

    def fail(*inputs: object, **options: object) -> torch.Tensor:
        calls.append(inputs)
        if len(calls) == 2:
            raise RuntimeError
        result: torch.Tensor = decoder(*inputs, **options)
        return result

    monkeypatch.setattr(autoencoder.module.decoder, "forward", fail)
    with pytest.raises(RuntimeError):
        autoencoder.decode(Latents(torch.zeros(3 * 4, 16), 2, 2, 3))
    assert set(autoencoder.module._feat_map) == {None}


def test_values_that_are_not_finite_make_no_video(wan: Path) -> None:
    autoencoder = bind(WanAutoencoder(wan, torch.float32, read_spec(wan)), wan)
    with pytest.raises(NonFinite):
        autoencoder.decode(Latents(torch.full((8, 16), torch.nan), 2, 2, 2))


def test_pictures_are_not_looked_at(wan: Path) -> None:
    autoencoder = WanAutoencoder(wan, torch.float32, read_spec(wan))
    with pytest.raises(InvalidRequest, match="text alone"):
        autoencoder.encode(make_request(), Picture(np.asarray(make_image(0, 64, 64))), CPU)


@pytest.mark.parametrize("frames", [1, 9])
def test_encoded_picture(wan_i2v: Path, i2v_oracle: WanImageToVideoPipeline, frames: int) -> None:
    """Where the transformer looks for it: after the mask."""
    image = make_image(3, 100, 75)
    size = {"height": 48, "width": 80}
    first = i2v_oracle.video_processor.preprocess(image, **size)
    with torch.no_grad():
        expected = i2v_oracle.prepare_latents(first, 1, 16, **size, num_frames=frames)[1][0]
    autoencoder = bind(WanAutoencoder(wan_i2v, torch.float32, read_spec(wan_i2v)), wan_i2v)
    encoded = autoencoder.encode(make_request(80, 48, frames=frames), Picture(np.asarray(image)), CPU)
    assert (encoded.frames, encoded.rows, encoded.columns) == expected.shape[1:]
    noise = torch.zeros(1, 16, *expected.shape[1:])
    shown = PictureChannels(to_grid(encoded)[None], 4).show(noise)[0]
    torch.testing.assert_close(shown, torch.cat((noise[0], expected)), rtol=0, atol=LATENTS)
    assert not autoencoder.weights.unreachable


def test_all_weights_are_read_but_the_encoders(wan: Path) -> None:
    autoencoder = WanAutoencoder(wan, torch.float32, read_spec(wan))
    (file,) = (wan / "vae").glob("*.safetensors")
    unread = {name for name in load_file(file) if name in autoencoder.weights.unreachable}
    assert {name.partition(".")[0] for name in unread} == {"encoder", "quant_conv"}
