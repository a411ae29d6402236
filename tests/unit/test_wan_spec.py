"""What Wan's checkpoints say of themselves before any weight is read, and what may be asked of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from deployments.http.images import ImageRequest, to_requests
from deployments.http.parsing import parse_json
from lightx2v.checkpoint import read_stages
from lightx2v.config import EngineSettings, LoraSettings
from lightx2v.errors import InvalidCheckpoint, InvalidRequest, InvalidSettings
from lightx2v.limits import Limits
from lightx2v.models.registry import find_family
from lightx2v.models.request import check_request
from lightx2v.models.wan.spec import WanSpec, read_spec
from lightx2v.models.wan.variant import ImageEncoderSpec
from lightx2v.types import GenerateRequest, Size, VideoSpec

SPEC = WanSpec(Size(832, 480), 50, 5.0, 16, VideoSpec(81, 4, 16))
I2V = replace(SPEC, steps=40, max_references=1, min_references=1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write(tmp_path, "model_index.json", _class_name="WanPipeline", boundary_ratio=None, expand_timesteps=False)
    write(tmp_path, "transformer/config.json", patch_size=[1, 2, 2])
    write(tmp_path, "vae/config.json", z_dim=16)
    return tmp_path


def write(checkpoint: Path, name: str, **values: object) -> None:
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_text(json.dumps(values))


def asked(frames: int) -> GenerateRequest:
    return GenerateRequest("unit", "a cat", SPEC.size, 4, 0, frames=frames)


def test_the_defaults(checkpoint: Path) -> None:
    assert find_family(checkpoint).name == "wan"
    assert read_spec(checkpoint) == SPEC


def test_a_picture_to_video(checkpoint: Path) -> None:
    write(checkpoint, "transformer/config.json", patch_size=[1, 2, 2], in_channels=36)
    write(checkpoint, "model_index.json", _class_name="WanImageToVideoPipeline", boundary_ratio=None)
    assert find_family(checkpoint).spec(checkpoint) == I2V


def test_a_timestep_per_token(checkpoint: Path) -> None:
    write(checkpoint, "model_index.json", _class_name="WanPipeline", expand_timesteps=True)
    write(checkpoint, "transformer/config.json", patch_size=[1, 2, 2], in_channels=48)
    write(checkpoint, "vae/config.json", z_dim=48, scale_factor_spatial=16)
    assert read_spec(checkpoint) == WanSpec(
        Size(1280, 704), 50, 5.0, 32, VideoSpec(121, 4, 24), max_references=1, expand_timesteps=True
    )


CLIP = {"image_encoder": ["transformers", "CLIPVisionModel"]}


@pytest.fixture
def sighted(checkpoint: Path) -> Path:
    write(checkpoint, "transformer/config.json", patch_size=[1, 2, 2], in_channels=36, image_dim=1280)
    write(checkpoint, "model_index.json", _class_name="WanImageToVideoPipeline", boundary_ratio=None, **CLIP)
    write(checkpoint, "image_encoder/config.json", image_size=224, patch_size=14)
    return checkpoint


def test_an_image_encoder(sighted: Path) -> None:
    assert read_spec(sighted) == replace(I2V, image_encoder=ImageEncoderSpec(224, 257))


@pytest.mark.parametrize(("size", "middle"), [((500, 300), (100, 400)), ((300, 500), (0, 300)), ((224, 224), (0, 224))])
def test_an_image_encoder_sees_the_middle(sighted: Path, size: tuple[int, int], middle: tuple[int, int]) -> None:
    """Red is what is left or right of it."""
    image = Image.new("RGBA", size, "red")
    image.paste((0, 0, 255, 255), (middle[0], 0, middle[1], size[1]))
    seen = read_spec(sighted).encoder_view(image)
    assert seen is not None
    assert (seen.size, seen.mode) == ((224, 224), "RGB")
    assert seen.crop((3, 0, 221, 224)).getcolors() == [(218 * 224, (0, 0, 255))]


@pytest.mark.parametrize("lacks", ["image_encoder", "image_dim"])
def test_an_image_encoder_that_nobody_listens_to(sighted: Path, lacks: str) -> None:
    if lacks == "image_dim":
        write(sighted, "transformer/config.json", patch_size=[1, 2, 2], in_channels=36, image_dim=None)
    else:
        write(sighted, "model_index.json", _class_name="WanImageToVideoPipeline", image_encoder=[None, None])
    with pytest.raises(InvalidCheckpoint, match="image_dim and an image_encoder need each other"):
        read_spec(sighted)


def test_the_others_see_nothing(checkpoint: Path) -> None:
    assert read_spec(checkpoint).encoder_view(Image.new("RGB", (64, 64))) is None


def test_other_channels_are_refused(checkpoint: Path) -> None:
    write(checkpoint, "transformer/config.json", patch_size=[1, 2, 2], in_channels=48)
    with pytest.raises(InvalidCheckpoint, match="48 channels"):
        read_spec(checkpoint)


def test_overrides(checkpoint: Path) -> None:
    write(checkpoint, "generation_config.json", size="64x48", num_frames=9, num_inference_steps=4)
    assert read_spec(checkpoint) == WanSpec(Size(64, 48), 4, 5.0, 16, VideoSpec(9, 4, 16))


@pytest.mark.parametrize("frames", [0, -3, 8, 9.0, "9", None, True])
def test_overrides_that_cannot_be(checkpoint: Path, frames: object) -> None:
    write(checkpoint, "generation_config.json", num_frames=frames)
    with pytest.raises(InvalidCheckpoint, match=r"generation_config\.json: num_frames"):
        read_spec(checkpoint)


SECOND = {"transformer_2": ["diffusers", "WanTransformer3DModel"]}


@pytest.mark.parametrize(
    "variant",
    [
        {"expand_timesteps": True, "boundary_ratio": 0.875} | SECOND,
        {"boundary_ratio": 0.875},
        {"boundary_ratio": 0.875, "transformer_2": [None, None]},
        *({"boundary_ratio": boundary} | SECOND for boundary in (None, 0.0, 1.0, 0.9999, -0.5, 1, True, "0.9")),
    ],
)
def test_other_wans_are_refused(checkpoint: Path, variant: dict[str, object]) -> None:
    write(checkpoint, "model_index.json", _class_name="WanPipeline", **variant)
    with pytest.raises(InvalidCheckpoint, match=next(iter(variant))):
        read_spec(checkpoint)


@pytest.fixture
def experts(checkpoint: Path) -> Path:
    write(checkpoint, "model_index.json", _class_name="WanPipeline", boundary_ratio=0.875, **SECOND)
    return checkpoint


def test_two_transformers_of_a_picture(checkpoint: Path) -> None:
    index = {"_class_name": "WanImageToVideoPipeline", "boundary_ratio": 0.9, "image_encoder": [None, None]}
    write(checkpoint, "model_index.json", **index, **SECOND)
    write(checkpoint, "transformer/config.json", patch_size=[1, 2, 2], in_channels=36)
    assert read_spec(checkpoint) == replace(I2V, guidance=3.5, refine_guidance=3.5, boundary=0.9)
    assert "refine" in read_stages(EngineSettings(model=str(checkpoint)))


def test_two_transformers(experts: Path) -> None:
    spec = read_spec(experts)
    assert (spec.steps, spec.guidance, spec.refine_guidance, spec.boundary) == (40, 4.0, 3.0, 0.875)
    settings = EngineSettings(model=str(experts))
    assert read_stages(settings) == ("encode", "denoise", "refine", "decode")
    with pytest.raises(InvalidSettings, match=r"^loras.oil: .* two transformers; name a file for each.*high: oil.saf"):
        read_stages(settings.model_copy(update={"loras": {"oil": LoraSettings(path="oil.safetensors")}}))
    for part in ("high", "low"):
        lora = LoraSettings.model_validate({part: "oil.safetensors"})
        assert "refine" in read_stages(settings.model_copy(update={"loras": {"oil": lora}}))


@pytest.mark.parametrize("absent", [{}, {"transformer_2": [None, None]}, {"transformer_2": None}])
def test_one_transformer(checkpoint: Path, absent: dict[str, object]) -> None:
    write(checkpoint, "model_index.json", _class_name="WanPipeline", boundary_ratio=None, **absent)
    assert read_spec(checkpoint) == SPEC
    loras = {"oil": LoraSettings(path="oil.safetensors")}
    assert read_stages(EngineSettings(model=str(checkpoint), loras=loras)) == ("encode", "denoise", "decode")
    loras = {"oil": LoraSettings.model_validate({"high": "oil.safetensors"})}
    with pytest.raises(InvalidSettings, match=r"^loras.oil: .* has one transformer; name one path"):
        read_stages(EngineSettings(model=str(checkpoint), loras=loras))


@pytest.mark.parametrize(
    ("values", "guidance", "shift"),
    [
        ({"guidance_scale": 5}, (5.0, 5.0), None),
        ({"guidance_scale_2": 2.5}, (4.0, 2.5), None),
        ({"guidance_scale": 5, "guidance_scale_2": 2.5, "flow_shift": 12.0}, (5.0, 2.5), 12.0),
    ],
)
def test_overrides_of_two(
    experts: Path, values: dict[str, object], guidance: tuple[float, float], shift: float | None
) -> None:
    write(experts, "generation_config.json", **values)
    spec = read_spec(experts)
    assert ((spec.guidance, spec.refine_guidance), spec.flow_shift) == (guidance, shift)


@pytest.mark.parametrize("value", ["3", True, float("nan"), None, [3]])
@pytest.mark.parametrize("key", ["guidance_scale_2", "flow_shift"])
def test_overrides_of_two_that_cannot_be(experts: Path, key: str, value: object) -> None:
    write(experts, "generation_config.json", **{key: value})
    with pytest.raises(InvalidCheckpoint, match=rf"generation_config\.json: {key}"):
        read_spec(experts)


@pytest.mark.parametrize("shift", [0, -3.0, float("inf")])
def test_a_shift_is_positive(checkpoint: Path, shift: float) -> None:
    write(checkpoint, "generation_config.json", flow_shift=shift)
    with pytest.raises(InvalidCheckpoint, match=r"generation_config\.json: flow_shift"):
        read_spec(checkpoint)


@pytest.mark.parametrize("guidance", [None, 7.0])
def test_a_request_names_one_scale_for_both(experts: Path, guidance: float | None) -> None:
    """That the model's own two apply is said by None."""
    body = {"prompt": "a cat"} | ({} if guidance is None else {"guidance_scale": guidance})
    spec = read_spec(experts)
    (request,) = to_requests(parse_json(ImageRequest, json.dumps(body).encode()), spec, Limits())
    assert (request.guidance, request.refine_guidance) == (guidance or spec.guidance, guidance)


def test_no_references(checkpoint: Path) -> None:
    with pytest.raises(InvalidRequest, match="text alone"):
        read_spec(checkpoint).fit_reference(Image.new("RGB", (64, 64)))


@pytest.mark.parametrize("count", [0, 2])
def test_how_many_references(count: int) -> None:
    request = replace(asked(5), references=(Size(64, 64),) * count)
    with pytest.raises(InvalidRequest, match="image: this model") as caught:
        check_request(request, I2V, Limits())
    assert caught.value.param == "image"
    check_request(replace(request, references=(Size(64, 64),)), I2V, Limits())


def test_a_reference_keeps_its_pixels_up_to_a_bound() -> None:
    assert I2V.fit_reference(Image.new("RGBA", (640, 479))).size == (640, 479)
    assert I2V.fit_reference(Image.new("RGB", (6000, 3000))).size == (2896, 1448)
    with pytest.raises(InvalidRequest, match="too small"):
        I2V.fit_reference(Image.new("RGB", (640, 63)))


@pytest.mark.parametrize(
    ("reference", "size"),
    [
        (None, Size(832, 480)),
        (Size(1664, 960), Size(832, 480)),
        (Size(64, 64), Size(624, 624)),
        (Size(75, 100), Size(544, 720)),
    ],
)
def test_the_default_size_has_the_aspect_of_the_picture(reference: Size | None, size: Size) -> None:
    assert I2V.edit_size([reference] if reference else []) == size


@pytest.mark.parametrize("frames", [1, 5, 81, 161])
def test_frames_that_can_be_asked_for(frames: int) -> None:
    Limits().check(asked(frames), SPEC.multiple, SPEC.video)


@pytest.mark.parametrize("frames", [-3, 0, 2, 4, 80, 165, 10**9 + 1])
def test_frames_that_cannot_be_asked_for(frames: int) -> None:
    with pytest.raises(InvalidRequest, match="num_frames") as caught:
        Limits().check(asked(frames), SPEC.multiple, SPEC.video)
    assert caught.value.param == "num_frames"


@pytest.mark.parametrize("frames", [0, 5])
def test_other_families_make_pictures_only(frames: int) -> None:
    with pytest.raises(InvalidRequest, match="num_frames"):
        Limits().check(asked(frames), 16)
