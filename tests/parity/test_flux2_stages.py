"""Each part of FLUX.2 klein and dev on its own against diffusers and transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

from lightx2v.layers.rope import rope_table
from lightx2v.models.flux2.autoencoder import Flux2Autoencoder
from lightx2v.models.flux2.denoiser import Flux2Denoiser
from lightx2v.models.flux2.schedule import noise_levels, timesteps
from lightx2v.models.flux2.spec import read_spec
from lightx2v.models.flux2.transformer import Flux2Shape, Flux2Transformer
from lightx2v.models.registry import find_family
from lightx2v.types import Conditioning, Latents, Picture
from tests.checkpoints.flux2 import make_transformer
from tests.parity.reference import LATENTS, PIXELS, bind, load_reference, make_image, make_request
from tests.visits import finish, take_steps

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def oracle(distilled: Path) -> Flux2KleinPipeline:
    return load_reference(distilled)


@pytest.mark.parametrize(
    "prompt",
    ["", "a red circle", "été 🎨 <|im_end|> [INST] [IMG]", "a red circle " * 75, "word " * 700],
    ids=["no", "short", "odd", "long", "cut"],
)
@pytest.mark.parametrize("variant", ["distilled", "base", "dev"])
def test_conditioning(prompt: str, variant: str, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(variant)
    expected = load_reference(checkpoint).encode_prompt(prompt)[0][0]
    encoder = bind(
        find_family(checkpoint).build("encode", checkpoint, torch.float32, read_spec(checkpoint)), checkpoint
    )
    torch.testing.assert_close(finish(encoder.encode(prompt, (), CPU)), expected, rtol=0, atol=LATENTS)


@pytest.mark.parametrize("guidance_embeds", [False, True])
def test_one_transformer_call(guidance_embeds: bool) -> None:
    expected_of = make_transformer(guidance_embeds)
    shape = Flux2Shape(**{name: expected_of.config[name] for name in Flux2Shape.__slots__})
    module = Flux2Transformer(shape)
    module.load_state_dict(expected_of.state_dict())
    image, text = torch.randn(1, 24, 32), torch.randn(1, 10, 96)
    image_ids = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(6), torch.arange(1))
    text_ids = torch.cartesian_prod(*(torch.arange(1),) * 3, torch.arange(10))
    time, guidance = torch.tensor([0.75]), torch.tensor([4.0]) if guidance_embeds else None
    rope = rope_table(torch.cat((text_ids, image_ids)), shape.axes_dims_rope, shape.rope_theta)
    with torch.no_grad():
        expected = expected_of(
            image, text, time, img_ids=image_ids[None], txt_ids=text_ids[None], guidance=guidance, return_dict=False
        )[0]
        scaled = None if guidance is None else guidance * 1000
        ours = finish(module(image, text, time * 1000, rope, scaled))
        torch.testing.assert_close(ours, expected, rtol=0, atol=LATENTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "steps"), [(4096, 4), (4096, 50), (16, 1), (35, 7), (4300, 28), (4301, 28), (9216, 8)]
)
def test_the_schedule_is_exact(oracle: Flux2KleinPipeline, tokens: int, steps: int, dtype: torch.dtype) -> None:
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    scheduler = oracle.scheduler
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps))
    levels = noise_levels(tokens, steps)
    assert torch.equal(levels, scheduler.sigmas)
    rounded = (scheduler.timesteps.to(dtype) / 1000).to(dtype) * 1000
    assert torch.equal(timesteps(levels, dtype), rounded)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64), (80, 144)])
def test_encoded_reference(distilled: Path, oracle: Flux2KleinPipeline, width: int, height: int) -> None:
    image = make_image(3, width, height)
    autoencoder = bind(Flux2Autoencoder(distilled, torch.float32, read_spec(distilled)), distilled)
    ours = autoencoder.encode(make_request(), Picture(np.asarray(image)), CPU)
    pixels = oracle.image_processor.preprocess(image, height=height, width=width, resize_mode="crop")
    with torch.no_grad():
        expected = oracle.prepare_image_latents([pixels], 1, None, CPU, torch.float32)[0][0]
    assert (ours.rows, ours.columns) == (height // 16, width // 16)
    torch.testing.assert_close(ours.tokens, expected, rtol=0, atol=LATENTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoded_picture(distilled: Path, dtype: torch.dtype) -> None:
    oracle = Flux2KleinPipeline.from_pretrained(distilled, dtype=dtype)
    latents = torch.randn(1, 15, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    embeds = torch.zeros(1, 1, 96, dtype=dtype)
    oracle.set_progress_bar_config(disable=True)
    picture = oracle(
        prompt_embeds=embeds,
        latents=latents.transpose(1, 2).reshape(1, 32, 3, 5),
        height=48,
        width=80,
        num_inference_steps=1,
        guidance_scale=1.0,
        callback_on_step_end=lambda *_: {"latents": latents},
    ).images[0]
    autoencoder = bind(Flux2Autoencoder(distilled, dtype, read_spec(distilled)), distilled)
    ours = autoencoder.decode(Latents(latents[0], 3, 5)).pixels
    difference = np.abs(ours.astype(int) - np.asarray(picture).astype(int))
    assert difference.max() <= PIXELS
    assert difference.mean() < 0.01, "rounded, not truncated"


@pytest.mark.parametrize(
    ("width", "height"), [(64, 64), (100, 75), (1024, 1024), (1500, 900), (3000, 400), (257, 1999)]
)
def test_fitted_reference(distilled: Path, width: int, height: int) -> None:
    image, processor = make_image(5, width, height), Flux2ImageProcessor(vae_scale_factor=16)
    expected = image
    if width * height > 1024 * 1024:
        expected = processor._resize_to_target_area(image, 1024 * 1024)
    size = expected.width // 16 * 16, expected.height // 16 * 16
    expected = processor._resize_and_crop(expected, *size)
    fitted = read_spec(distilled).fit_reference(image)
    assert fitted.size == size
    assert np.array_equal(np.asarray(fitted), np.asarray(expected))


def test_noise_is_drawn_as_the_reference_draws_it(distilled: Path, oracle: Flux2KleinPipeline) -> None:
    denoiser = bind(Flux2Denoiser(distilled, torch.float32, read_spec(distilled)), distilled)
    for parameter in denoiser.module.parameters():
        parameter.zero_()
    request = make_request(112, 64, steps=1, seed=2**63 - 1)
    conditioning = Conditioning(torch.zeros(512, 96))
    (latents,) = take_steps(denoiser, request, conditioning, (), CPU)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    expected = oracle.prepare_latents(1, 8, 64, 112, torch.float32, CPU, generator)[0][0]
    assert torch.equal(latents.tokens, expected)
