"""Pictures of which a part is made anew: against diffusers' inpainting pipelines, and against what a mask means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_inpaint as published
import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    Flux2KleinInpaintPipeline,
    QwenImageEditInpaintPipeline,
    ZImageInpaintPipeline,
)
from PIL import Image, ImageDraw

from lightx2v.config import EngineSettings
from lightx2v.media.mask import paste
from lightx2v.models.reference_image import make_reference
from lightx2v.models.registry import find_family
from lightx2v.pipeline import Pipeline
from lightx2v.stages.interface import StageInputs
from lightx2v.types import GenerateRequest, Reference
from tests.parity.oracle_edit import load_edit_reference
from tests.parity.reference import LATENTS, PIXELS, generate, load_reference, make_image, make_request

AREA = 96 * 96
"""Of an edit model's references, in the fixture `small_references`."""

Published = Callable[..., tuple[torch.Tensor, np.ndarray[Any, Any]]]


def make_mask(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """White in a box of whole tokens, where all ways to shrink a mask agree."""
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def masked(checkpoint: Path, image: Image.Image, mask: Image.Image, *others: Image.Image) -> list[Reference]:
    spec = find_family(checkpoint).spec(checkpoint)
    return [make_reference(image, spec, mask), *(make_reference(other, spec) for other in others)]


def masked_request(references: list[Reference], **fields: object) -> GenerateRequest:
    first, *_ = sizes = tuple(reference.fitted.size for reference in references)
    defaults = {"references": sizes, "is_masked": True, "strength": 1.0}
    return make_request(first.width, first.height, **defaults | fields)


def run(
    reference: DiffusionPipeline, request: GenerateRequest, image: Image.Image, mask: Image.Image, **given: Any
) -> Any:
    reference.set_progress_bar_config(disable=True)
    last: dict[str, torch.Tensor] = {}
    made = reference(
        image=image,
        mask_image=mask,
        strength=request.strength,
        num_inference_steps=request.steps,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        callback_on_step_end=lambda _pipeline, _step, _time, tensors: last.update(tensors) or tensors,
        callback_on_step_end_tensor_inputs=["latents"],
        **given,
    ).images[0]
    return last["latents"][0], np.asarray(made)


def flux2(checkpoint: Path, request: GenerateRequest, image: Image.Image, mask: Image.Image, **given: Any) -> Any:
    loaded = load_reference(checkpoint)
    reference = Flux2KleinInpaintPipeline(**loaded.components, is_distilled=loaded.config.is_distilled)
    return run(reference, request, image, mask, prompt=request.prompt, guidance_scale=request.guidance, **given)


def z_image(checkpoint: Path, request: GenerateRequest, image: Image.Image, mask: Image.Image) -> Any:
    reference = ZImageInpaintPipeline(**load_reference(checkpoint).components)
    negative = request.negative_prompt
    given = {"prompt": request.prompt, "negative_prompt": negative, "guidance_scale": request.guidance}
    grid, made = run(reference, request, image, mask, **given)
    tokens, *_ = reference.transformer._patchify_image(grid[:, None], 2, 1)
    return tokens, made


def qwen_image_edit(checkpoint: Path, request: GenerateRequest, image: Image.Image, mask: Image.Image) -> Any:
    """The pipeline is that of the first edit model. Prompts and pictures are encoded by that of the later ones, which
    takes the posterior's mean instead of drawing from it."""
    loaded, spec = load_edit_reference(checkpoint), find_family(checkpoint).spec(checkpoint)
    reference = QwenImageEditInpaintPipeline(**loaded.components)
    seen = [spec.encoder_view(image)]
    with torch.no_grad():
        positive, negative = (loaded.encode_prompt(prompt, seen)[0] for prompt in (request.prompt, " "))
    told = {"prompt_embeds": positive, "negative_prompt_embeds": negative, "true_cfg_scale": request.guidance}
    reference.encode_prompt = lambda prompt_embeds, **_: (prompt_embeds, None)
    reference._encode_vae_image = loaded._encode_vae_image
    return run(reference, request, image, mask, **told)


def compare(
    checkpoint: Path,
    oracle: Published,
    image: Image.Image,
    mask: Image.Image,
    others: Sequence[Image.Image] = (),
    **fields: object,
) -> None:
    references = masked(checkpoint, image, mask, *others)
    request = masked_request(references, **fields)
    latents, picture = generate(checkpoint, request, references)
    expected_latents, expected = oracle(checkpoint, request, image, mask)
    assert (latents.tokens - expected_latents).abs().max().item() <= LATENTS
    canvas, *_ = references
    assert canvas.mask is not None
    pasted = paste(expected, canvas.fitted.pixels, canvas.mask)
    assert np.abs(picture.pixels.astype(int) - pasted.astype(int)).max() <= PIXELS


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 4), (0.6, 5), (0.1, 3)])
def test_klein(distilled: Path, strength: float, steps: int) -> None:
    compare(
        distilled, flux2, make_image(1, 96, 64), make_mask(96, 64, (16, 16, 64, 48)), strength=strength, steps=steps
    )


def test_klein_with_guidance(base: Path) -> None:
    compare(base, flux2, make_image(1, 80, 64), make_mask(80, 64, (0, 0, 48, 64)), guidance=4.0)


def test_klein_with_another_reference(distilled: Path) -> None:
    image, other = make_image(1, 64, 64), make_image(2, 80, 64)
    oracle = partial(flux2, image_reference=other)
    compare(distilled, oracle, image, make_mask(64, 64, (16, 16, 64, 48)), [other])


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 4), (0.6, 5)])
def test_z_image(z_turbo: Path, strength: float, steps: int) -> None:
    mask = make_mask(96, 64, (32, 16, 96, 48))
    compare(z_turbo, z_image, make_image(2, 96, 64), mask, guidance=0.0, strength=strength, steps=steps)


def test_z_image_with_guidance(z_base: Path) -> None:
    mask = make_mask(64, 80, (0, 16, 32, 80))
    compare(z_base, z_image, make_image(2, 64, 80), mask, guidance=3.0, negative_prompt="blurry")


@pytest.mark.usefixtures("small_references")
@pytest.mark.parametrize(("guidance", "strength"), [(1.0, 1.0), (4.0, 0.7)])
def test_qwen_image_edit(edit_2511: Path, monkeypatch: pytest.MonkeyPatch, guidance: float, strength: float) -> None:
    whole = published.calculate_dimensions
    monkeypatch.setattr(published, "calculate_dimensions", lambda _, aspect: (*whole(AREA, aspect), None)[:3])
    mask = make_mask(96, 96, (16, 32, 64, 96))
    compare(edit_2511, qwen_image_edit, make_image(3, 96, 96), mask, guidance=guidance, strength=strength)


def _round_mask(width: int, height: int) -> Image.Image:
    """An ellipse, which cuts through tokens."""
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).ellipse((10, 20, 70, 58), fill=255)
    return mask


@pytest.mark.usefixtures("small_references")
@pytest.mark.parametrize("name", ["distilled", "dev", "z_turbo", "edit_2511"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_mask_keeps(name: str, dtype: Literal["float32", "bfloat16"], request: pytest.FixtureRequest) -> None:
    """Outside of it the last latents are the picture's own, so that decoding gives what encoding and decoding gives,
    and the pixels are those of the picture. Inside, both change."""
    checkpoint: Path = request.getfixturevalue(name)
    references = masked(checkpoint, make_image(4, 96, 96), _round_mask(96, 96))
    asked, (canvas, *_) = masked_request(references, steps=2), references
    assert canvas.mask is not None
    settings = EngineSettings(model=str(checkpoint), dtype=dtype, device="cpu")
    with closing(Pipeline(settings)) as pipeline:
        latents = pipeline.latents(asked, references)
        inputs = StageInputs(pictures=(canvas.fitted,), mask=canvas.mask)
        (encoded,) = pipeline.run_stage("decode", "encode", asked, inputs)
        picture = pipeline.decode(asked, latents, references)
    kept, edited = encoded.edited[:, 0] == 0, canvas.mask.edited
    assert 10 < kept.sum() < 30
    assert torch.equal(latents.tokens[kept], encoded.tokens[kept].to(latents.tokens.dtype))
    assert not torch.isclose(latents.tokens[~kept], encoded.tokens[~kept].to(latents.tokens.dtype)).all(dim=1).any()
    assert np.array_equal(picture.pixels[~edited], canvas.fitted.pixels[~edited])
    assert (picture.pixels[edited] != canvas.fitted.pixels[edited]).any(axis=-1).mean() > 0.9


def test_a_mask_of_all_is_a_whole_edit(distilled: Path) -> None:
    references = masked(distilled, make_image(4, 64, 64), Image.new("L", (64, 64), 255))
    latents, picture = generate(distilled, masked_request(references), references)
    plain = replace(references[0], mask=None)
    expected, whole = generate(distilled, masked_request(references, is_masked=False), [plain])
    assert torch.equal(latents.tokens, expected.tokens)
    assert np.array_equal(picture.pixels, whole.pixels)
