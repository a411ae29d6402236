"""What a mask means: for the latents at every step, for the pixels of the picture, and for a request."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lightx2v.errors import InvalidRequest
from lightx2v.limits import Limits
from lightx2v.media.mask import EDITED, FEATHER, decode_mask, paste, token_shares
from lightx2v.models.flow import noise
from lightx2v.models.flux2.spec import Flux2Spec
from lightx2v.models.inpaint import Inpaint
from lightx2v.models.qwen_image.spec import QwenImageEditSpec
from lightx2v.models.reference_image import make_reference
from lightx2v.models.request import check_request, complete
from lightx2v.models.sampler import Euler, SamplingState, Stepper, sample
from lightx2v.models.spec import ModelSpec
from lightx2v.models.visits import Pause, Visits
from lightx2v.models.wan.spec import WanSpec
from lightx2v.models.z_image.spec import ZImageSpec
from lightx2v.types import GenerateRequest, Latents, Mask, Size, VideoSpec
from tests.visits import finish

LEVELS = torch.tensor([1.0, 0.8, 0.5, 0.0])
SQUARE = Size(1024, 1024)
FLUX2 = Flux2Spec(SQUARE, 4, 1.0, multiple=16, distilled=True)
Z_IMAGE = ZImageSpec(SQUARE, 8, 0.0, multiple=16)
QWEN_IMAGE_EDIT = QwenImageEditSpec(SQUARE, 40, 4.0, multiple=16)
MASKLESS = [
    ModelSpec(SQUARE, 50, 4.0, multiple=16),
    WanSpec(Size(832, 480), 40, 5.0, multiple=16, video=VideoSpec(81, 4, 16), max_references=1),
]


def velocity(state: SamplingState[None]) -> Visits[torch.Tensor]:
    yield Pause.BLOCK
    return 0.5 * state.latents + state.step


def reached(stepper: Stepper, drawn: torch.Tensor) -> list[torch.Tensor]:
    """The latents after each step."""
    request = GenerateRequest("unit", "", Size(16, 16), steps=3, seed=1)
    state, taken = SamplingState(request, None, stepper, drawn, 0, 3), list[torch.Tensor]()
    finish(sample(state, velocity, lambda: taken.append(state.latents[0])))
    return taken


def test_latents_outside_follow_the_picture_at_every_step() -> None:
    drawn, clean = noise((1, 3, 2), 1), noise((3, 2), 2)
    shares = torch.tensor([[0.0], [0.25], [1.0]])
    stepper = Inpaint(Euler(LEVELS), LEVELS, Latents(clean, 1, 3, edited=shares), drawn, torch.device("cpu"))
    masked, plain = reached(stepper, drawn), reached(Euler(LEVELS), drawn)
    for latents, free, level in zip(masked, plain, LEVELS[1:], strict=True):
        kept = level * drawn[0] + (1 - level) * clean
        assert torch.equal(latents[0], kept[0])
        assert torch.equal(latents[2], free[2])
        assert not torch.equal(latents[1], kept[1])
    assert torch.equal(masked[-1][0], clean[0])
    assert stepper.history() == ()


def test_a_share_between_mixes_both() -> None:
    clean, drawn, moved = torch.zeros(1, 2), torch.zeros(1, 1, 2), torch.full((1, 1, 2), 8.0)
    picture = Latents(clean, 1, 1, edited=torch.tensor([[0.25]]))
    stepper = Inpaint(Euler(LEVELS), LEVELS, picture, drawn, torch.device("cpu"))
    assert torch.equal(stepper.step(moved, torch.zeros_like(moved), 0), torch.full((1, 1, 2), 2.0))


def test_a_picture_without_its_mask_is_a_fault() -> None:
    with pytest.raises(ValueError, match="mask"):
        Inpaint(Euler(LEVELS), LEVELS, Latents(torch.zeros(1, 2), 1, 1), torch.zeros(1, 1, 2), torch.device("cpu"))


def test_shares_of_tokens_run_by_rows() -> None:
    edited = np.zeros((4, 6), bool)
    edited[:2, 2:4] = True
    edited[3, 5] = True
    assert token_shares(Mask(edited), 2, 3).tolist() == [[0], [1], [0], [0], [0], [0.25]]


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_pixels_outside_are_the_pictures_own(seed: int, density: float) -> None:
    random = np.random.default_rng(seed)
    made, original = random.integers(0, 256, (2, 24, 40, 3), dtype=np.uint8)
    edited = np.kron(random.random((6, 10)) < density, np.ones((4, 4), bool))
    pasted = paste(made, original, Mask(edited))
    assert np.array_equal(pasted[~edited], original[~edited])
    low, high = np.minimum(made, original), np.maximum(made, original)
    assert ((low <= pasted) & (pasted <= high)).all()


def test_the_new_picture_comes_in_behind_the_edge() -> None:
    made, original = np.full((40, 60, 3), 200, np.uint8), np.zeros((40, 60, 3), np.uint8)
    edited = np.zeros((40, 60), bool)
    edited[:, 20:] = True
    row = paste(made, original, Mask(edited))[0, :, 0]
    assert row[:20].max() == 0
    assert row[20 : 20 + FEATHER].tolist() == [200 * step // FEATHER for step in range(1, FEATHER + 1)]
    assert row[20 + FEATHER :].min() == 200


@pytest.mark.parametrize("spec", [FLUX2, Z_IMAGE, QWEN_IMAGE_EDIT])
@pytest.mark.parametrize("size", [(1000, 750), (3000, 1000), (64, 512), (333, 333)])
def test_a_mask_is_fitted_as_its_picture(spec: ModelSpec, size: tuple[int, int]) -> None:
    """A picture that is its own mask, so that each shows where the other went."""
    width, height = size
    image = Image.new("L", size)
    image.paste(255, (width // 4, height // 4, width // 2, height // 2))
    reference = make_reference(image, spec, image)
    assert reference.mask is not None
    assert reference.mask.edited.shape == reference.fitted.pixels.shape[:2]
    assert np.array_equal(reference.mask.edited, reference.fitted.pixels[..., 0] >= 128)
    request = complete("a prompt", spec, [reference.fitted.size], is_masked=True)
    check_request(request, spec, Limits())
    assert request.size == reference.fitted.size


def test_a_mask_without_an_edited_part() -> None:
    with pytest.raises(InvalidRequest, match="mask: it keeps all") as caught:
        make_reference(Image.new("RGB", (64, 64)), FLUX2, Image.new("L", (64, 64), 127))
    assert caught.value.param == "mask"


def test_a_mask_of_another_size() -> None:
    with pytest.raises(InvalidRequest, match="the first picture, 64x96, got 64x64"):
        make_reference(Image.new("RGB", (64, 96)), FLUX2, Image.new("L", (64, 64), 255))


@pytest.mark.parametrize("spec", MASKLESS)
def test_models_without_masks_refuse_them(spec: ModelSpec) -> None:
    spec = replace(spec, max_references=1)
    with pytest.raises(InvalidRequest, match="mask: this model"):
        check_request(complete("a prompt", spec, [spec.size], is_masked=True, frames=1), spec, Limits())


def test_a_mask_without_a_picture() -> None:
    with pytest.raises(InvalidRequest, match="mask: there is no picture"):
        check_request(complete("a prompt", FLUX2, [], is_masked=True), FLUX2, Limits())


def test_the_size_is_that_of_the_first_picture() -> None:
    pictures = [Size(96, 64), Size(64, 64)]
    assert complete("a prompt", QWEN_IMAGE_EDIT, pictures, is_masked=True).size == pictures[0]
    asked = complete("a prompt", QWEN_IMAGE_EDIT, pictures, is_masked=True, size=pictures[1])
    with pytest.raises(InvalidRequest, match="the first picture, 96x64") as caught:
        check_request(asked, QWEN_IMAGE_EDIT, Limits())
    assert caught.value.param == "size"


def test_strength_of_a_masked_request() -> None:
    """All of the schedule, unless less is asked for, in models too that else have none."""
    pictures = [Size(96, 64)]
    assert complete("a prompt", FLUX2, pictures, is_masked=True).strength == 1.0
    assert complete("a prompt", FLUX2, pictures, is_masked=True, strength=0.4).strength == 0.4
    with pytest.raises(InvalidRequest, match="strength"):
        complete("a prompt", FLUX2, pictures, strength=0.4)


def test_where_a_mask_is_transparent_the_picture_changes() -> None:
    mask = Image.new("RGBA", (64, 48), (255, 255, 255, 255))
    mask.paste((255, 255, 255, 0), (16, 0, 32, 48))
    expected = np.zeros((48, 64), np.uint8)
    expected[:, 16:32] = 255
    assert np.array_equal(np.asarray(decode_mask(to_png(mask))), expected)
    assert np.array_equal(np.asarray(decode_mask(to_png(mask.convert("LA")))), expected)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "P"])
def test_where_no_pixel_is_transparent_white_changes(mode: str) -> None:
    """Also in an opaque mask with an alpha channel, and in one whose alpha is nowhere below half."""
    mask = make_mask(64, 48).convert(mode)
    expected = np.asarray(make_mask(64, 48))
    assert np.array_equal(np.asarray(decode_mask(to_png(mask))), expected)
    if mode in ("LA", "RGBA"):
        mask.putalpha(200)
        assert np.array_equal(np.asarray(decode_mask(to_png(mask))) >= EDITED, expected >= EDITED)


def test_a_mask_is_turned_as_its_picture() -> None:
    mask = make_mask(64, 48)
    turned = mask.getexif()
    turned[0x0112] = 6
    assert np.array_equal(np.asarray(decode_mask(to_png(mask, exif=turned))), np.rot90(np.asarray(mask), -1))


def test_a_picture_is_no_mask() -> None:
    """An opaque copy of the picture, for one."""
    with pytest.raises(InvalidRequest, match="transparent where the picture is to change, or black and white"):
        decode_mask(to_png(Image.new("RGB", (64, 48), (200, 180, 90))))


def test_an_unreadable_mask_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"^mask: not a readable") as caught:
        decode_mask(b"nothing")
    assert caught.value.param == "mask"


def make_mask(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, (16, 8, 40, 24))
    return mask


def to_png(image: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()
