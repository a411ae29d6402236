"""`python -m lightx2v`: a picture, or one line that says what is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from lightx2v.__main__ import main
from lightx2v.config import ENVIRONMENT, EngineSettings, LoraSettings
from lightx2v.media.encode import FORMATS, PICTURE_FORMATS, encode
from lightx2v.pipeline import Pipeline
from lightx2v.types import ChosenLora, GenerateRequest, Picture, Reference, Size
from tests.checkpoints import lora
from tests.parity.reference import make_image

ROOT = Path(__file__).parents[2]
PROMPT = "a red circle"

Command = Callable[..., int]


@pytest.fixture
def command(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line on the tiny model, in the settings of the `pipeline` fixture, writing to the test's folder."""
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, prompt: str = PROMPT, model: Path = checkpoint) -> int:
        return main([prompt, "--model", str(model), "--dtype", "float32", "--device", "cpu", *arguments])

    return run


@pytest.fixture
def refused(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The message of a command that fails, and leaves nothing behind."""

    def run(*arguments: str, prompt: str = PROMPT, **where: Path) -> str:
        before = sorted(tmp_path.iterdir())
        assert command(*arguments, prompt=prompt, **where) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert sorted(tmp_path.iterdir()) == before
        (message,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        return message

    return run


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def request(size: Size, seed: int, steps: int = 4, **fields: object) -> GenerateRequest:
    return GenerateRequest("cli", PROMPT, size, steps, seed, **fields)  # type: ignore[arg-type]


def test_a_picture_like_the_pipelines(
    command: Command, pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-o", "circle.png", "--seed", "7") == 0
    captured = capsys.readouterr()
    assert captured.out == "circle.png\n"
    assert "seed 7" in captured.err
    assert "4/4" in captured.err, "a bar that reached its end"
    expected = pipeline.generate(request(Size(64, 64), 7)).pixels
    assert np.array_equal(pixels(tmp_path / "circle.png"), expected)


@pytest.mark.parametrize(("suffix", "name"), [(s, name) for name in PICTURE_FORMATS for s in FORMATS[name].suffixes])
def test_a_file_is_the_servers_to_the_byte(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, name: str
) -> None:
    made = Picture(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    monkeypatch.setattr("lightx2v.commands.generate._make", lambda *_: made)
    assert command("-o", f"out{suffix.upper()}") == 0
    assert (tmp_path / f"out{suffix.upper()}").read_bytes() == encode(made, name)


def test_size_steps_and_the_name_when_none_is_given(command: Command, pipeline: Pipeline, tmp_path: Path) -> None:
    assert command("--seed", "0", "--size", "48x32", "--steps", "2") == 0
    made = pixels(tmp_path / "out.png")
    assert made.shape == (32, 48, 3)
    assert np.array_equal(made, pipeline.generate(request(Size(48, 32), 0, steps=2)).pixels)


def test_seeds_make_different_pictures_and_none_is_drawn_twice(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("1.png", "2.png"):
        assert command("-o", name, "--steps", "1", "--size", "32x32") == 0
    assert not np.array_equal(pixels(tmp_path / "1.png"), pixels(tmp_path / "2.png"))


def test_references(command: Command, pipeline: Pipeline, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    for index, reference in enumerate(noise):
        Image.fromarray(reference).save(tmp_path / f"reference{index}.png")
    assert command("-o", "one.png", "--seed", "3", "-i", "reference0.png") == 0
    assert command("-o", "two.png", "--seed", "3", "-i", "reference0.png", "-i", "reference1.png") == 0
    size = Size(96, 64)
    for name, count in (("one.png", 1), ("two.png", 2)):
        references = [Reference(Picture(reference)) for reference in noise[:count]]
        expected = pipeline.generate(request(size, 3, references=(size,) * count), references).pixels
        assert np.array_equal(pixels(tmp_path / name), expected), name
    assert not np.array_equal(pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png"))


def test_the_start_is_a_picture(
    command: Command, z_turbo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three of four steps are left of strength 0.6, and one of 0.2."""
    noise = np.random.default_rng(0).integers(0, 256, (70, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "start.png")
    for name, strength, bar in (("weak.png", ("--strength", "0.2"), "1/1"), ("usual.png", (), "3/3")):
        asked = ("-o", name, "-i", "start.png", "--seed", "3", "--steps", "4", *strength)
        assert command(*asked, model=z_turbo) == 0
        assert bar in capsys.readouterr().err
    engine = EngineSettings(model=str(z_turbo), dtype="float32", device="cpu")
    started = request(Size(96, 64), 3, guidance=0.0, references=(Size(96, 70),), strength=0.2)
    expected = Pipeline(engine).generate(started, [Reference(Picture(noise))]).pixels
    assert np.array_equal(pixels(tmp_path / "weak.png"), expected)
    assert not np.array_equal(pixels(tmp_path / "usual.png"), expected)


def test_strength_without_a_picture_to_start_from(refused: Callable[..., str], z_turbo: Path) -> None:
    assert "does not start from a picture" in refused("--strength", "0.5")
    assert "no picture to start from" in refused("--strength", "0.5", model=z_turbo)


@pytest.mark.parametrize("strength", ["0", "-1", "1.5", "nan"])
def test_strength_is_a_share(refused: Callable[..., str], z_turbo: Path, tmp_path: Path, strength: str) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "start.png")
    assert "strength" in refused("-i", "start.png", f"--strength={strength}", model=z_turbo)


def test_settings_are_those_of_a_configuration(command: Command, pipeline: Pipeline, tmp_path: Path) -> None:
    offload = ("--cpu-offload", "true", "--offload-granularity", "block", "--lazy-load", "true")
    assert command("--seed", "7", *offload, "--gpu-budget", "64MiB") == 0
    assert np.array_equal(pixels(tmp_path / "out.png"), pipeline.generate(request(Size(64, 64), 7)).pixels)


@pytest.mark.parametrize(("given", "expected"), [((), False), (("--compile", "auto"), "auto")])
def test_code_is_made_for_one_picture_only_if_wanted(
    command: Command, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], expected: object
) -> None:
    class Unmade(Exception):
        pass

    def make(settings: EngineSettings, *_: object) -> None:
        assert settings.compile == expected
        raise Unmade

    monkeypatch.setattr("lightx2v.commands.generate._make", make)
    with pytest.raises(Unmade):
        command(*given)


@pytest.mark.parametrize("chosen", [("--lora", "oil", "--lora-scale", "0.5"), ("--lora", "oil=0.5")])
def test_a_lora_by_its_name(command: Command, checkpoint: Path, tmp_path: Path, chosen: tuple[str, ...]) -> None:
    loras = {"oil": LoraSettings(path=str(lora.write(tmp_path / "oil.safetensors", lora.peft())))}
    given = ("--seed", "7", "--loras", "oil=oil.safetensors")
    assert command(*given, *chosen) == 0
    settings = EngineSettings(model=str(checkpoint), dtype="float32", device="cpu", loras=loras)
    with closing(Pipeline(settings)) as pipeline:
        expected = pipeline.generate(request(Size(64, 64), 7, loras=(ChosenLora("oil", 0.5),))).pixels
        assert not np.array_equal(pipeline.generate(request(Size(64, 64), 7)).pixels, expected)
    assert np.array_equal(pixels(tmp_path / "out.png"), expected)


def test_a_lora_that_cannot_be_had(refused: Callable[..., str], tmp_path: Path) -> None:
    assert refused("--lora", "oil") == "error: lora: 'oil' is not served here; none is configured"
    assert "known are oil" in refused("--lora", "ink", "--loras", "oil=nowhere")
    assert "without a lora" in refused("--lora-scale", "0.5")
    assert "write name, or name=scale" in refused("--lora", "oil=much", "--loras", "oil=nowhere")
    assert "not both" in refused("--lora", "oil=0.5", "--lora-scale", "0.5", "--loras", "oil=nowhere")
    assert "shift: this model computes its own" in refused("--shift", "3")
    assert "no such file" in refused("--lora", "oil", "--loras", f"oil={tmp_path / 'nowhere'}")
    assert "write name=path" in refused("--loras", "oil")
    file = lora.write(tmp_path / "oil.safetensors", {"entry.lora_A.weight": torch.ones(1)})
    assert f"{file}: entry.lora_A.weight belongs to no" in refused("--lora", "oil", "--loras", f"oil={file}")


def test_a_budget_that_is_too_small_is_told(refused: Callable[..., str]) -> None:
    assert "the budget is 1000" in refused("--gpu-budget", "1000")


def test_a_missing_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    assert refused(model=tmp_path / "nowhere") == f"error: {tmp_path / 'nowhere'}: no such folder"


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_a_truncated_weight_file_is_named(
    refused: Callable[..., str], checkpoint: Path, tmp_path: Path, part: str
) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    (file,) = (tmp_path / "model" / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    assert str(file) in refused(model=tmp_path / "model")


def test_a_missing_weight_file(refused: Callable[..., str], checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "model", ignore=shutil.ignore_patterns("diffusion*.safetensors"))
    assert str(tmp_path / "model" / "transformer") in refused(model=tmp_path / "model")


@pytest.mark.parametrize("size", ["64", "64x", "x64", "64x63", "0x64", "64x0", "-64x64", "64x64x64", "64 x", "1e3x64"])
def test_a_bad_size(refused: Callable[..., str], size: str) -> None:
    message = refused(f"--size={size}")
    assert "size" in message
    assert size in message


@pytest.mark.parametrize("seed", [-2, -(2**63), 2**64, 10**30])
def test_a_seed_beyond_what_the_server_takes(refused: Callable[..., str], seed: int) -> None:
    assert "seed" in refused(f"--seed={seed}")


def test_the_largest_seed(command: Command, pipeline: Pipeline, tmp_path: Path) -> None:
    assert command("--seed", str(2**64 - 1), "--steps", "1") == 0
    assert np.array_equal(pixels(tmp_path / "out.png"), pipeline.generate(request(Size(64, 64), 2**64 - 1, 1)).pixels)


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_are_positive(refused: Callable[..., str], steps: int) -> None:
    assert "steps" in refused(f"--steps={steps}")


@pytest.mark.parametrize("guidance", ["nan", "inf"])
def test_guidance_is_a_number(refused: Callable[..., str], guidance: str) -> None:
    assert "guidance" in refused(f"--guidance={guidance}")


@pytest.mark.parametrize(
    "setting", ["--dtype=int8", "--device=tpu", "--cpu-offload=sometimes", "--gpu-budget=much", "--lazy-load=true"]
)
def test_a_value_of_a_setting_that_is_not_known(refused: Callable[..., str], setting: str) -> None:
    key = setting.lstrip("-").partition("=")[0].replace("-", "_")
    assert key in refused(setting)


def test_a_reference_that_is_not_there_or_no_picture(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    for name in ("nowhere.png", "text.png"):
        assert name in refused("-i", name)
    assert "too small" in refused("-i", "small.png")


def test_a_reference_of_200_megapixels(refused: Callable[..., str], tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    assert "pixels" in refused("-i", "huge.png")


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("out.unknown", "the name must end in one of .png"),
        ("out", "the name must end in one of .png"),
        ("nowhere/out.png", "there is no folder nowhere"),
    ],
)
def test_an_output_that_cannot_be_written(
    command: Command, capsys: pytest.CaptureFixture[str], output: str, complaint: str
) -> None:
    """Told before a picture is made for it."""
    with pytest.raises(SystemExit) as caught:
        command("-o", output)
    assert caught.value.code == 2
    assert f"{output}: {complaint}" in capsys.readouterr().err


def test_the_module_itself(checkpoint: Path, tmp_path: Path) -> None:
    """As it is typed: the exit status, and nothing but the message on a failure."""
    arguments = [sys.executable, "-m", "lightx2v", PROMPT, "--model", str(tmp_path / "nowhere")]
    run = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"error: {tmp_path / 'nowhere'}: no such folder\n"


@pytest.fixture
def wan_command(wan: Path, command: Command) -> Command:
    return lambda *arguments: command(*arguments, "--seed", "7", "--steps", "1", "--size", "32x48", model=wan)


@pytest.mark.parametrize(("arguments", "frames"), [((), 9), (("--frames", "5", "-o", "clip.mp4"), 5)])
def test_a_video(wan_command: Command, tmp_path: Path, arguments: tuple[str, ...], frames: int) -> None:
    assert wan_command(*arguments) == 0
    with av.open(tmp_path / (arguments[-1] if arguments else "out.mp4")) as container:
        (stream,) = container.streams
        assert (stream.width, stream.height, stream.average_rate) == (32, 48, 16)
        assert len(list(container.decode(stream))) == frames


def test_a_video_of_a_picture(command: Command, refused: Callable[..., str], wan_i2v: Path, tmp_path: Path) -> None:
    assert "needs at least 1" in refused(model=wan_i2v)
    make_image(0, 96, 64).save(tmp_path / "first.png")
    assert command("-i", "first.png", "--seed", "7", "--steps", "1", model=wan_i2v) == 0
    with av.open(tmp_path / "out.mp4") as container:
        (stream,) = container.streams
        assert (stream.width, stream.height) == (64, 32), "about 64x48 pixels, in the aspect of the picture"
        assert len(list(container.decode(stream))) == 9


def test_one_frame_is_a_picture(wan_command: Command, tmp_path: Path) -> None:
    assert wan_command("--frames", "1") == 0
    assert pixels(tmp_path / "out.png").shape == (48, 32, 3)


def test_frames_that_cannot_be(refused: Callable[..., str], wan: Path) -> None:
    assert "makes no videos" in refused("--frames", "5")
    assert "multiple of 4" in refused("--frames", "8", model=wan)


def test_a_name_of_another_kind(refused: Callable[..., str], wan: Path) -> None:
    assert "a picture must end in one of .png" in refused("-o", "out.mp4")
    assert "a video must end in one of .mp4" in refused("-o", "out.png", model=wan)
