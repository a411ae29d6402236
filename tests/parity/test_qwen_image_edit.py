"""Qwen-Image-Edit 2509 and 2511 against diffusers' pipeline, in fp32: part by part, and from prompt to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as published
import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_position_ids

from lightx2v.__main__ import main
from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidRequest
from lightx2v.limits import Limits
from lightx2v.models.qwen_image import spec as specs
from lightx2v.models.qwen_image.autoencoder import QwenImageEditAutoencoder
from lightx2v.models.qwen_image.denoiser import QwenImageDenoiser
from lightx2v.models.qwen_image.edit_encoder import PAD, SYSTEM_TOKENS, TEMPLATE, QwenImageEditTextEncoder
from lightx2v.models.qwen_image.spec import MAX_EDIT_TOKENS, SEEN_TOKENS, read_spec
from lightx2v.models.qwen_image.vision import Grid, mix, to_patches
from lightx2v.models.reference_image import make_reference
from lightx2v.models.registry import find_family
from lightx2v.models.request import check_request, planning_request
from lightx2v.pipeline import Pipeline
from lightx2v.types import Conditioning, GenerateRequest, Latents, Picture, Reference, Size
from tests.parity.oracle_edit import load_edit_reference
from tests.parity.oracle_qwen_image import reference_generate
from tests.parity.reference import LATENTS, PIXELS, generate, make_image, make_request
from tests.parity.test_qwen_image_parts import features, load
from tests.visits import finish

CPU = torch.device("cpu")
AREA = 112 * 112
"""In place of a million pixels, for speed."""

SIZES = ((96, 64), (70, 130), (64, 64))


@pytest.fixture(autouse=True)
def _small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "VAE_IMAGE_SIZE", AREA)
    monkeypatch.setattr(specs, "REFERENCE_AREA", AREA)


@pytest.fixture(params=["edit_2509", "edit_2511"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="module")
def reference(edit_2509: Path) -> QwenImageEditPlusPipeline:
    return load_edit_reference(edit_2509)


@pytest.fixture(scope="module")
def encoder(edit_2509: Path) -> QwenImageEditTextEncoder:
    encoder: QwenImageEditTextEncoder = load(
        QwenImageEditTextEncoder(edit_2509, torch.float32, read_spec(edit_2509)), edit_2509
    )
    return encoder


def make_images(count: int) -> list[Image.Image]:
    return [make_image(seed, *size) for seed, size in enumerate(SIZES[:count])]


def make_references(checkpoint: Path, images: Sequence[Image.Image]) -> list[Reference]:
    return [make_reference(image, specs.read_spec(checkpoint)) for image in images]


def edit_request(references: Sequence[Reference], **fields: object) -> GenerateRequest:
    return make_request(80, 64, references=tuple(one.fitted.size for one in references), **fields)


def compare(checkpoint: Path, images: Sequence[Image.Image], **fields: object) -> None:
    references = make_references(checkpoint, images)
    request = edit_request(references, **fields)
    latents, picture = generate(checkpoint, request, references)
    expected_latents, expected = reference_generate(load_edit_reference(checkpoint), request, image=images)
    assert (latents.tokens - expected_latents).abs().max().item() <= LATENTS
    assert np.abs(picture.pixels.astype(int) - expected.astype(int)).max() <= PIXELS


@pytest.mark.parametrize(("count", "guidance"), [(1, 1.0), (1, 4.0), (2, 4.0)])
def test_edits(checkpoint: Path, count: int, guidance: float) -> None:
    compare(checkpoint, make_images(count), guidance=guidance)


def test_three_references_and_a_negative_prompt(edit_2511: Path) -> None:
    compare(edit_2511, make_images(3), guidance=2.5, negative_prompt="a blurry picture of nothing at all", steps=2)


def test_what_is_seen_counts(edit_2509: Path) -> None:
    """Also when the same process has encoded the same prompt before, with other pictures."""
    first, second = make_references(edit_2509, make_images(2))
    request = edit_request([first], guidance=1.0, steps=1)
    settings = EngineSettings(model=str(edit_2509), dtype="float32", device="cpu")
    with closing(Pipeline(settings)) as pipeline:
        seen = [
            pipeline.latents(request, [Reference(first.fitted, one.encoder_view)]).tokens
            for one in (first, second, first)
        ]
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    assert torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("size", [(384, 384), (160, 1024), (1088, 128), (352, 416), (32, 96)])
def test_patches(size: tuple[int, int]) -> None:
    image = make_image(0, *size)
    expected = Qwen2VLImageProcessorPil(min_pixels=1)(images=[image], return_tensors="pt")
    patches, grid = to_patches(Picture(np.asarray(image)), 14, 2, 2)
    assert [[1, *grid]] == expected["image_grid_thw"].tolist()
    torch.testing.assert_close(patches, expected["pixel_values"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("grids", [[], [Grid(14, 14)], [Grid(2, 37), Grid(5, 1), Grid(1, 1)]])
def test_positions(reference: QwenImageEditPlusPipeline, grids: list[Grid]) -> None:
    """Against transformers' own, which count patches where we count tokens."""
    pad = 7
    ids = [1, 2, *(token for _ in grids for token in (3, 3, pad, 4)), 5, 6]
    mixed = mix(ids, pad, grids)
    shapes = torch.tensor([(1, 2 * grid.rows, 2 * grid.columns) for grid in grids])
    expected, _ = reference.text_encoder.model.get_rope_index(
        mixed.ids, mixed.pictured[None].int(), shapes if grids else None
    )
    assert torch.equal(mixed.positions, expected)
    assert torch.equal(mixed.ids[0] == pad, mixed.pictured)


def test_a_users_own_pads_are_no_pictures() -> None:
    mixed = mix([1, 7, 2, 7], 7, [Grid(1, 2)])
    assert mixed.ids.tolist() == [[1, 7, 7, 2, 7]]
    assert mixed.pictured.tolist() == [False, True, True, False, False]
    assert mixed.positions[:, 0].T.tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 2], [3, 3, 3], [4, 4, 4]]


def test_vision(encoder: QwenImageEditTextEncoder, reference: QwenImageEditPlusPipeline) -> None:
    images = [make_image(0, 384, 384), make_image(1, 160, 1024)]
    pictures = [Picture(np.asarray(image)) for image in images]
    inputs = reference.processor.image_processor(images=images, return_tensors="pt")
    with torch.no_grad():
        expected = reference.text_encoder.model.visual(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        seen, grids = finish(encoder._see(pictures, CPU))
        patches = torch.cat([to_patches(picture, 14, 2, 2)[0] for picture in pictures])
        positions = get_vision_position_ids(inputs["image_grid_thw"], 2)
        at_once = encoder.module.visual(patches, grid_thw=inputs["image_grid_thw"], position_ids=positions)
    assert [(grid.rows, grid.columns) for grid in grids] == [(14, 14), (37, 6)]
    assert expected.std() > 0.1
    assert (seen - expected).abs().max() <= LATENTS
    assert torch.equal(seen, at_once.pooler_output), "the pauses change no bit"


def test_template(reference: QwenImageEditPlusPipeline) -> None:
    assert (
        reference.prompt_template_encode,
        reference.prompt_template_encode_start_idx,
    ) == (TEMPLATE, SYSTEM_TOKENS)


@pytest.mark.parametrize("prompt", ["", " ", "{}", "put the red circle of Picture 1 on Picture 2"])
@pytest.mark.parametrize("count", [1, 2])
def test_encoder(
    edit_2509: Path,
    encoder: QwenImageEditTextEncoder,
    reference: QwenImageEditPlusPipeline,
    prompt: str,
    count: int,
) -> None:
    spec = specs.read_spec(edit_2509)
    seen = [spec.encoder_view(image) for image in make_images(count)]
    with torch.no_grad():
        expected, mask = reference.encode_prompt(prompt, seen)
    encoded = finish(encoder.encode(prompt, [Picture(np.asarray(image)) for image in seen], CPU))
    assert mask is None
    assert encoded.shape == expected[0].shape
    assert (encoded - expected[0]).abs().max() <= LATENTS


@pytest.mark.parametrize("prompt", [f"a {PAD} of mine", "a red circle " * 3000])
def test_prompts_beyond_what_the_reference_is_used_with(encoder: QwenImageEditTextEncoder, prompt: str) -> None:
    """One that names a picture that there is none of, at which it fails; one without end."""
    encoded = finish(encoder.encode(prompt, [Picture(np.asarray(make_image(0, 384, 384)))], CPU))
    assert torch.isfinite(encoded).all()
    assert len(encoded) < MAX_EDIT_TOKENS + SEEN_TOKENS


def test_a_block_is_used_once_per_prompt(edit_2509: Path) -> None:
    encoder: QwenImageEditTextEncoder = load(
        QwenImageEditTextEncoder(edit_2509, torch.float32, read_spec(edit_2509)), edit_2509
    )
    entered: list[str] = []
    for name in encoder.blocks:
        encoder.module.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: entered.append(name))
    finish(encoder.encode("a red circle", [Picture(np.asarray(image)) for image in make_images(2)], CPU))
    assert entered == list(encoder.blocks)


@pytest.mark.parametrize("size", [(64, 64), (96, 32), (32, 160)])
def test_autoencoder_encodes(edit_2509: Path, reference: QwenImageEditPlusPipeline, size: tuple[int, int]) -> None:
    autoencoder: QwenImageEditAutoencoder = load(
        QwenImageEditAutoencoder(edit_2509, torch.float32, read_spec(edit_2509)), edit_2509
    )
    image = make_image(3, *size)
    with torch.no_grad():
        pixels = reference.image_processor.preprocess(image).unsqueeze(2)
        grid = reference._encode_vae_image(pixels, torch.Generator())
    expected = reference._pack_latents(grid, 1, 16, *grid.shape[-2:])[0]
    encoded = autoencoder.encode(make_request(), Picture(np.asarray(image)), CPU)
    assert (encoded.columns, encoded.rows) == (size[0] // 16, size[1] // 16)
    assert expected.std() > 0.05
    assert (encoded.tokens - expected).abs().max() <= LATENTS


@pytest.mark.parametrize("grids", [[(4, 5), (3, 7)], [(4, 5), (2, 2), (9, 1), (5, 4)]])
def test_velocity(checkpoint: Path, grids: list[tuple[int, int]]) -> None:
    reference = load_edit_reference(checkpoint)
    denoiser: QwenImageDenoiser = load(QwenImageDenoiser(checkpoint, torch.float32, read_spec(checkpoint)), checkpoint)
    target, *others = (torch.randn(rows * columns, 64) for rows, columns in grids)
    references = [Latents(tokens, *grid) for tokens, grid in zip(others, grids[1:], strict=True)]
    text, time = features(9), torch.tensor([0.7312])
    with torch.no_grad():
        table = denoiser.module.tabulate(torch.cat((time, torch.zeros(1))))
        state = denoiser.start(make_request(80, 64), Conditioning(text), references, CPU)
        conditions = state.conditions._replace(times=time, modulations=table)
        predicted = finish(denoiser.velocity(replace(state, latents=target[None], conditions=conditions)))
        expected = reference.transformer(
            hidden_states=torch.cat((target, *others))[None],
            encoder_hidden_states=text[None],
            timestep=time,
            img_shapes=[[(1, *grid) for grid in grids]],
        ).sample[:, : len(target)]
    assert (predicted - expected).abs().max() <= LATENTS


def test_references_are_modulated_once_for_a_schedule(edit_2511: Path) -> None:
    denoiser: QwenImageDenoiser = load(QwenImageDenoiser(edit_2511, torch.float32, read_spec(edit_2511)), edit_2511)
    table = denoiser._modulation(20, 4, None, (), CPU)
    assert len(table) == 5
    assert torch.equal(table[-1:], denoiser.module.tabulate(torch.zeros(1)))


@pytest.mark.parametrize("size", [(1024, 1024), (333, 1000), (64, 512), (4000, 601)])
def test_how_a_reference_is_scaled(
    edit_2509: Path, monkeypatch: pytest.MonkeyPatch, reference: QwenImageEditPlusPipeline, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(specs, "REFERENCE_AREA", 1024 * 1024)
    image = make_image(5, *size)
    made = make_reference(image, specs.read_spec(edit_2509))
    for picture, area in ((made.fitted, 1024 * 1024), (made.encoder_view, published.CONDITION_IMAGE_SIZE)):
        width, height = published.calculate_dimensions(area, size[0] / size[1])
        assert picture is not None
        assert picture.size == Size(width, height)
        assert np.array_equal(picture.pixels, np.asarray(reference.image_processor.resize(image, height, width)))


def test_spec(checkpoint: Path) -> None:
    spec = specs.read_spec(checkpoint)
    assert find_family(checkpoint).name == "qwen-image-edit"
    assert spec == specs.QwenImageEditSpec(Size(1024, 1024), steps=40, guidance=4.0, multiple=16, takes_shift=True)
    assert (spec.min_references, spec.max_references) == (1, 3)
    assert spec.edit_size([Size(64, 32), Size(96, 64)]) == Size(96, 64)
    assert spec.edit_size([]) == spec.size


@pytest.mark.parametrize("count", [0, 4])
def test_too_few_or_too_many_pictures(edit_2509: Path, count: int) -> None:
    request = make_request(references=(Size(64, 64),) * count)
    with pytest.raises(InvalidRequest, match="image: this model") as caught:
        check_request(request, specs.read_spec(edit_2509), Limits())
    assert caught.value.param == "image"


def test_the_command_line(
    edit_2509: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    image = make_image(1, 96, 64)
    image.save("in.png")
    given = ["a red circle", "--model", str(edit_2509), "--dtype", "float32", "--device", "cpu", "--steps", "1"]
    assert main(given) == 1
    assert "error: image: this model needs at least 1" in capsys.readouterr().err
    assert main([*given, "-i", "in.png", "-o", "out.png", "--seed", "7"]) == 0
    references = make_references(edit_2509, [image])
    size = references[0].fitted.size
    request = make_request(size.width, size.height, prompt="a red circle", steps=1, guidance=4.0, references=(size,))
    _, expected = generate(edit_2509, request, references)
    assert np.array_equal(np.asarray(Image.open("out.png")), expected.pixels)


def test_the_plan_is_made_for_an_edit(edit_2509: Path) -> None:
    request = planning_request(specs.read_spec(edit_2509))
    assert request.references == (Size(1024, 1024),)


@pytest.mark.parametrize("size", [(63, 64), (64, 513)])
def test_a_picture_that_cannot_be_used(edit_2509: Path, size: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest, match="a reference of"):
        make_reference(Image.new("RGB", size), specs.read_spec(edit_2509))


def test_every_picture_has_at_most_so_many_tokens() -> None:
    """Of every aspect that is taken."""
    aspects = [8 ** (step / 5000 - 1) for step in range(10001)]
    sizes = (published.calculate_dimensions(published.CONDITION_IMAGE_SIZE, aspect) for aspect in aspects)
    assert max(round(width / 28) * round(height / 28) for width, height in sizes) == SEEN_TOKENS
