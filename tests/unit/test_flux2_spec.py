"""What FLUX.2 checkpoints say of themselves before any weight is read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lightx2v.core import GenerateRequest, Size
from lightx2v.errors import InvalidCheckpoint, InvalidRequest
from lightx2v.models.flux2.spec import Flux2Spec, read_spec
from lightx2v.models.registry import find_family


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "vae").mkdir()
    write(tmp_path / "model_index.json", {"_class_name": "Flux2KleinPipeline", "is_distilled": True})
    write(tmp_path / "vae/config.json", {"sample_size": 1024, "block_out_channels": [128, 256, 512, 512]})
    return tmp_path


def write(path: Path, values: object) -> None:
    path.write_text(json.dumps(values))


def test_a_distilled_checkpoint(checkpoint: Path) -> None:
    expected = Flux2Spec(distilled=True, size=Size(1024, 1024), steps=4, guidance=1.0, multiple=16)
    assert find_family(checkpoint).spec(checkpoint) == expected


def test_a_base_checkpoint_lacks_the_key(checkpoint: Path) -> None:
    write(checkpoint / "model_index.json", {"_class_name": "Flux2KleinPipeline"})
    spec = read_spec(checkpoint)
    assert (spec.distilled, spec.steps, spec.guidance) == (False, 50, 4.0)


def test_dev_is_told_the_guidance_scale(checkpoint: Path) -> None:
    write(checkpoint / "model_index.json", {"_class_name": "Flux2Pipeline"})
    spec = read_spec(checkpoint)
    assert spec == Flux2Spec(Size(1024, 1024), 50, 4.0, multiple=16, embeds_guidance=True)
    assert not spec.is_guided(GenerateRequest("unit", "", spec.size, spec.steps, 0, spec.guidance))


def test_overrides(checkpoint: Path) -> None:
    write(checkpoint / "vae/config.json", {"sample_size": [96, 64], "block_out_channels": [8, 8, 8]})
    assert read_spec(checkpoint).size == Size(96, 64)
    write(checkpoint / "generation_config.json", {"num_inference_steps": 20, "guidance_scale": 3, "size": "128x96"})
    assert read_spec(checkpoint) == Flux2Spec(Size(128, 96), 20, 3.0, multiple=8, distilled=True)


@pytest.mark.parametrize(
    "values",
    [
        {"size": "100x96"},
        {"size": "0x16"},
        {"size": 128},
        {"num_inference_steps": 0},
        {"num_inference_steps": True},
        {"num_inference_steps": "4"},
        {"guidance_scale": "high"},
        {"guidance_scale": None},
        [],
    ],
)
def test_a_wrong_override_names_its_file(checkpoint: Path, values: object) -> None:
    write(checkpoint / "generation_config.json", values)
    with pytest.raises(InvalidCheckpoint, match=r"generation_config\.json"):
        read_spec(checkpoint)


@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(InvalidCheckpoint, match=name):
        read_spec(checkpoint)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match="nowhere"):
        find_family(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_broken_index_is_named(checkpoint: Path, text: str) -> None:
    (checkpoint / "model_index.json").write_text(text)
    with pytest.raises(InvalidCheckpoint, match=r"model_index\.json"):
        find_family(checkpoint)


@pytest.mark.parametrize("index", [{"_class_name": "FluxPipeline"}, {"_class_name": ["x"]}])
def test_an_unknown_class_is_told_what_is_supported(checkpoint: Path, index: object) -> None:
    write(checkpoint / "model_index.json", index)
    with pytest.raises(InvalidCheckpoint, match="Flux2KleinPipeline"):
        find_family(checkpoint)


@pytest.mark.parametrize("values", [{}, {"sample_size": 1024}])
def test_a_missing_key_is_named(checkpoint: Path, values: object) -> None:
    write(checkpoint / "vae/config.json", values)
    with pytest.raises(InvalidCheckpoint, match="is missing"):
        read_spec(checkpoint)


@pytest.mark.parametrize(("width", "height"), [(63, 64), (64, 10), (1, 1), (64, 513), (4000, 64)])
def test_a_reference_that_cannot_be_used(checkpoint: Path, width: int, height: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_spec(checkpoint).fit_reference(Image.new("RGB", (width, height)))
    assert caught.value.param == "image"
    assert f"{width}x{height}" in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_a_reference_becomes_rgb(checkpoint: Path, mode: str) -> None:
    fitted = read_spec(checkpoint).fit_reference(Image.new(mode, (64, 512)))
    assert (fitted.mode, fitted.size) == ("RGB", (64, 512))


def test_the_size_of_an_edit(checkpoint: Path) -> None:
    spec = read_spec(checkpoint)
    assert spec.edit_size([Size(64, 80), Size(16, 16)]) == Size(64, 80)
    assert spec.edit_size([]) == spec.size


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, lightx2v.models.registry, lightx2v.models.flux2.spec\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
