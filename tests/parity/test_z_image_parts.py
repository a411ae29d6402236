"""Each part of Z-Image on its own: against diffusers and transformers, and what it says of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImagePipeline

from lightx2v.errors import InvalidCheckpoint, NonFinite
from lightx2v.models.flow import first_step
from lightx2v.models.z_image.autoencoder import ZImageAutoencoder
from lightx2v.models.z_image.denoiser import ZImageDenoiser, noise_levels, times
from lightx2v.models.z_image.encoder import ZImageTextEncoder
from lightx2v.models.z_image.spec import read_spec
from lightx2v.models.z_image.transformer import to_grid, to_tokens
from lightx2v.types import Conditioning, Latents, Picture, Size
from tests.parity.reference import LATENTS, PIXELS, bind, load_reference, make_image, make_request
from tests.visits import finish, first_velocity, take_steps

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def oracle(z_turbo: Path) -> ZImagePipeline:
    return load_reference(z_turbo)


@pytest.fixture(scope="module")
def denoiser(z_turbo: Path) -> ZImageDenoiser:
    return bind(ZImageDenoiser(z_turbo, torch.float32, read_spec(z_turbo)), z_turbo)


@pytest.fixture(scope="module")
def autoencoder(z_turbo: Path) -> ZImageAutoencoder:
    return bind(ZImageAutoencoder(z_turbo, torch.float32, read_spec(z_turbo)), z_turbo)


@pytest.mark.parametrize(
    "prompt",
    ["", "a red circle", "été 🎨 <|im_end|> [INST] [IMG]", "a red circle " * 75, "word " * 700],
    ids=["no", "short", "odd", "long", "cut"],
)
def test_conditioning(z_turbo: Path, oracle: ZImagePipeline, prompt: str) -> None:
    """The prompt's own tokens, without padding."""
    expected = oracle.encode_prompt(prompt, do_classifier_free_guidance=False)[0][0]
    encoder = bind(ZImageTextEncoder(z_turbo, torch.float32, read_spec(z_turbo)), z_turbo)
    torch.testing.assert_close(finish(encoder.encode(prompt, (), CPU)), expected, rtol=0, atol=LATENTS)


def test_the_encoder_reads_all_layers_but_the_last(z_turbo: Path) -> None:
    encoder = ZImageTextEncoder(z_turbo, torch.float32, read_spec(z_turbo))
    assert encoder.blocks == tuple(f"layers.{index}" for index in range(5))
    assert encoder.weights.unreachable == {"norm.weight"}


def test_a_text_encoder_of_one_layer_has_no_last_but_one(z_turbo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ZImageTextEncoder(z_turbo, torch.float32, read_spec(z_turbo))
    assert encoder.depth(1) > 1, "which is refused"
    monkeypatch.setattr(ZImageTextEncoder, "depth", lambda _self, layers: layers + 1)
    with pytest.raises(InvalidCheckpoint, match="6 layers"):
        ZImageTextEncoder(z_turbo, torch.float32, read_spec(z_turbo))


@pytest.mark.parametrize("captions", [[7], [32], [40, 7], [33, 64]])
def test_one_transformer_call(oracle: ZImagePipeline, denoiser: ZImageDenoiser, captions: list[int]) -> None:
    generator = torch.Generator().manual_seed(4)
    grid = torch.randn(16, 1, 10, 14, generator=generator)
    texts = [torch.randn(tokens, 32, generator=generator) for tokens in captions]
    time = torch.tensor([0.25])
    places = denoiser._places((5, 7), captions, CPU)
    with torch.no_grad():
        expected = oracle.transformer([grid] * len(texts), time.repeat(len(texts)), texts, return_dict=False)[0]
        ours = finish(denoiser.module(to_tokens(grid[None, :, 0], 2)[0], texts, time * 1000, places))
    torch.testing.assert_close(to_grid(ours, 5, 7, 2), torch.stack(expected)[:, :, 0], rtol=0, atol=LATENTS)


@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_a_step_enters_every_block_once(z_turbo: Path, guidance: float) -> None:
    """In their order, and whole parts too, with two captions of different lengths: what streams crosses once."""
    component = bind(ZImageDenoiser(z_turbo, torch.float32, read_spec(z_turbo)), z_turbo)
    blocks = {name: component.module.get_submodule(name) for name in component.blocks}
    parts = {f"{name}.{part}": child for name, block in blocks.items() for part, child in block.named_children()}
    entered: list[str] = []
    for name, module in (blocks | parts).items():
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: entered.append(name))
    captions = Conditioning(torch.zeros(40, 32), torch.zeros(7, 32) if guidance else None)
    first_velocity(component, make_request(guidance=guidance), captions, (), CPU)
    assert [name for name in entered if name in blocks] == list(component.blocks)
    assert sorted(entered) == sorted(blocks | parts)


@pytest.mark.parametrize("variant", ["z_turbo", "z_base"])
@pytest.mark.parametrize("steps", [1, 4, 8, 28, 50])
def test_the_schedule_is_exact(variant: str, steps: int, request: pytest.FixtureRequest) -> None:
    from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas

    scheduler = load_reference(request.getfixturevalue(variant)).scheduler
    scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(steps))
    levels = noise_levels(steps, scheduler.config.shift)
    assert torch.equal(levels, scheduler.sigmas)
    assert torch.equal(times(levels), (1000 - scheduler.timesteps) / 1000 * 1000)


def test_the_published_schedule_of_turbo() -> None:
    expected = [1, 0.95455, 0.9, 0.83333, 0.75, 0.64286, 0.5, 0.3, 0]
    assert noise_levels(8, 3.0).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("strength", [1e-300, 0.01, 0.3, 0.6, 0.99, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_steps_from_a_picture(oracle: ZImagePipeline, steps: int, strength: float) -> None:
    """As the reference counts them; where it would take none, and refuses, the last one is taken."""
    reference = ZImageImg2ImgPipeline(**oracle.components)
    reference.scheduler.set_timesteps(steps)
    left = reference.get_timesteps(steps, strength, CPU)[1]
    assert steps - first_step(steps, strength) == max(left, 1)


@pytest.mark.parametrize(("picture", "size"), [((64, 64), (64, 64)), ((100, 75), (80, 144))])
def test_encoded_picture(
    oracle: ZImagePipeline, autoencoder: ZImageAutoencoder, picture: tuple[int, int], size: tuple[int, int]
) -> None:
    """Drawn from the posterior by the request's seed, before the noise."""
    image, (width, height) = make_image(3, *picture), size
    ours = autoencoder.encode(make_request(width, height, seed=11), Picture(np.asarray(image)), CPU)
    pixels = oracle.image_processor.preprocess(image, height=height, width=width)
    generator = torch.Generator("cpu").manual_seed(11)
    with torch.no_grad():
        drawn = oracle.vae.encode(pixels).latent_dist.sample(generator)
    grid = to_grid(ours.tokens[None], ours.rows, ours.columns, 2)
    assert (ours.rows, ours.columns) == (height // 16, width // 16)
    torch.testing.assert_close(grid, (drawn - 0.1159) * 0.3611, rtol=0, atol=LATENTS)


def test_the_picture_is_drawn_before_the_noise(oracle: ZImagePipeline, denoiser: ZImageDenoiser) -> None:
    request = make_request(96, 64, seed=13, references=(Size(96, 64),), strength=0.5)
    generator = torch.Generator("cpu").manual_seed(13)
    torch.randn(1, 16, 8, 12, generator=generator)
    expected = oracle.prepare_latents(1, 16, 64, 96, torch.float32, CPU, generator)
    caption = Conditioning(torch.zeros(3, denoiser.shape.cap_feat_dim))
    started = denoiser.start(request, caption, [Latents(torch.ones(24, 64), 4, 6)], CPU)
    level = noise_levels(4, 3.0)[2]
    assert torch.equal(to_grid(started.latents, 4, 6, 2), level * expected + (1 - level))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoded_picture(z_turbo: Path, dtype: torch.dtype) -> None:
    grid = torch.randn(1, 16, 6, 10, generator=torch.Generator().manual_seed(1))
    oracle = ZImagePipeline.from_pretrained(z_turbo, dtype=dtype)
    with torch.no_grad():
        decoded = oracle.vae.decode(grid.to(dtype) / 0.3611 + 0.1159).sample
    expected = np.asarray(oracle.image_processor.postprocess(decoded)[0])
    autoencoder = bind(ZImageAutoencoder(z_turbo, dtype, read_spec(z_turbo)), z_turbo)
    ours = autoencoder.decode(Latents(to_tokens(grid, 2)[0], 3, 5)).pixels
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= PIXELS


def test_latents_that_are_not_finite_make_no_picture(autoencoder: ZImageAutoencoder) -> None:
    with pytest.raises(NonFinite):
        autoencoder.decode(Latents(torch.full((12, 64), float("nan")), 3, 4))


def test_latents_stay_in_fp32(z_turbo: Path) -> None:
    component = bind(ZImageDenoiser(z_turbo, torch.bfloat16, read_spec(z_turbo)), z_turbo)
    text = Conditioning(torch.zeros(8, 32).bfloat16())
    *_, latents = take_steps(component, make_request(guidance=0.0), text, (), CPU)
    assert latents.tokens.dtype == torch.float32
    assert not torch.equal(latents.tokens, latents.tokens.bfloat16().float())
