"""`python -m lightx2v convert`: LightX2V's configurations become ours, and every key of theirs is accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.settings import ModelSettings, parse_application
from lightx2v.__main__ import main
from lightx2v.commands.upstream.rules import convert
from lightx2v.config import BUNDLED_MODEL, ENVIRONMENT
from lightx2v.errors import InvalidSettings

Config = dict[str, Any]

PLAIN: Config = {
    "model_cls": "flux2_klein",
    "task": "t2i",
    "infer_steps": 4,
    "sample_guide_scale": 1.0,
    "enable_cfg": False,
    "feature_caching": "None",
    "rope_type": "flashinfer_rope",
    "cpu_offload": True,
    "offload_granularity": "model",
}
FP8: Config = {
    "infer_steps": 8,
    "aspect_ratio": "16:9",
    "prompt_template_encode": "{}",
    "prompt_template_encode_start_idx": 34,
    "attn_type": "flash_attn3",
    "enable_cfg": False,
    "sample_guide_scale": 4.0,
    "cpu_offload": True,
    "offload_granularity": "phase",
    "use_compile": True,
    "qwen25vl_cpu_offload": False,
    "dit_quantized": True,
    "dit_quantized_ckpt": "/models/qwen_fp8.safetensors",
    "dit_quant_scheme": "fp8-sgl",
}
VIDEO: Config = {
    "infer_steps": 40,
    "target_video_length": 80,
    "target_height": 480,
    "target_width": 832,
    "self_attn_1_type": "sage_attn2",
    "sample_guide_scale": 5,
    "sample_shift": 5,
    "enable_cfg": True,
    "cpu_offload": True,
    "offload_granularity": "block",
    "lazy_load": True,
    "dit_quantized": True,
    "dit_quant_scheme": "int8-vllm",
    "t5_quantized": True,
    "t5_quant_scheme": "int8",
    "t5_quantized_ckpt": "/models/t5.pth",
    "use_tiling_vae": True,
    "parallel": {"seq_p_size": 8, "seq_p_attn_type": "ulysses"},
}
EXPERTS: Config = {
    "model_cls": "wan2.2_moe_distill",
    "task": "i2v",
    "infer_steps": 4,
    "num_frames": 81,
    "size": [720, 1280],
    "sample_guide_scale": [3.5, 3.0],
    "sample_shift": 7.0,
    "boundary": 0.9,
    "denoising_step_list": [1000, 750, 500, 250],
    "cpu_offload": False,
    "offload_granularity": "block",
    "t5_cpu_offload": True,
    "high_noise_original_ckpt": "/models/high.safetensors",
    "low_noise_original_ckpt": "/models/low.safetensors",
    "high_noise_quantized_ckpt": None,
}
LORAS: Config = {
    "model_cls": "qwen_image",
    "task": "i2i",
    "model_path": "/models/Qwen-Image-Edit-2511",
    "infer_steps": 4,
    "true_cfg_scale": 4.0,
    "lora_configs": [{"path": "/loras/Lightning-4steps.safetensors", "strength": 1.0}],
    "unload_modules": False,
    "seed": 42,
    "_comment": "four steps",
}
CONFIGS = {"plain": PLAIN, "fp8": FP8, "video": VIDEO, "experts": EXPERTS, "loras": LORAS}
EACH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the developer has exported."""
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Exit status, output and errors of the command on a file with this content."""

    def run(content: object, *arguments: str) -> tuple[int, str, str]:
        file = tmp_path / "theirs.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        status = main(["convert", str(file), *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def verdicts(config: Config) -> dict[str, str]:
    return {key: note.verdict for note in convert(config).notes for key in note.key.split(", ")}


def served(text: str) -> ModelSettings:
    """The settings with which a server starts from the file."""
    (application,) = yaml.safe_load(text)["applications"]
    assert application["import_path"] == "deployments.app:build"
    (model,) = parse_application(application["args"]).models
    return model


@EACH
def test_every_key_is_accounted_for(config: Config) -> None:
    found = verdicts(config)
    assert found.keys() == config.keys() | {"model_path"}
    assert "unknown" not in found.values()
    assert all(note.reason for note in convert(config).notes)


@EACH
def test_a_server_reads_it(config: Config, command: Callable[..., Any]) -> None:
    status, out, err = command(config)
    assert status == 0
    assert served(out).cpu_offload is config.get("cpu_offload", "auto")
    assert all(f"{verdict:8} " in err for verdict in set(verdicts(config).values()))


def test_a_plain_one() -> None:
    made = convert(PLAIN)
    assert made.settings == {
        "model": "black-forest-labs/FLUX.2-klein-9B",
        "cpu_offload": True,
        "offload_granularity": "model",
    }
    assert made.defaults == {"num_inference_steps": 4, "guidance_scale": 1.0}
    assert [key for key, verdict in verdicts(PLAIN).items() if verdict == "kept"] == [
        "cpu_offload",
        "offload_granularity",
    ]


def test_weights_with_eight_bits() -> None:
    """A file stands for itself, and guidance that is off stays off. Parts of blocks are not compiled."""
    made = convert(FP8)
    assert made.settings == {
        "cpu_offload": True,
        "offload_granularity": "phase",
        "transformer": "/models/qwen_fp8.safetensors",
    }
    assert made.defaults["guidance_scale"] == 1.0
    assert verdicts(FP8)["use_compile"] == "dropped"
    assert convert(FP8 | {"offload_granularity": "block"}).settings["compile"] is True


def test_a_video() -> None:
    """Weights that LightX2V has quantised are rounded here while they are loaded; a pickle is not read."""
    made = convert(VIDEO)
    assert made.settings["fp8"] is made.settings["lazy_load"] is True
    assert "text_encoder" not in made.settings
    assert made.defaults == {
        "num_inference_steps": 40,
        "guidance_scale": 5,
        "size": "832x480",
        "num_frames": 81,
        "flow_shift": 5,
    }
    assert verdicts(VIDEO)["t5_quantized_ckpt"] == "dropped"


def test_two_transformers() -> None:
    made = convert(EXPERTS)
    assert made.settings == {
        "model": "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        "cpu_offload": False,
        "transformer": "/models/high.safetensors",
        "transformer_2": "/models/low.safetensors",
    }
    assert made.defaults["guidance_scale"] == 3.5
    assert made.defaults["guidance_scale_2"] == 3.0
    assert verdicts(EXPERTS)["offload_granularity"] == "dropped"


def test_loras(command: Callable[..., Any]) -> None:
    """A LoRA has a name here, and a path is kept."""
    settings = served(command(LORAS)[1])
    assert settings.model == "/models/Qwen-Image-Edit-2511"
    (lora,) = settings.loras.values()
    assert list(settings.loras) == ["Lightning-4steps"]
    assert (lora.path, lora.scale) == ("/loras/Lightning-4steps.safetensors", 1.0)
    assert convert(LORAS).defaults["guidance_scale"] == 4.0


def test_the_strength_of_a_lora_is_kept(command: Callable[..., Any]) -> None:
    settings = served(command({"lora_configs": [{"path": "a.safetensors", "strength": 0.5}]})[1])
    assert (settings.loras["a"].path, settings.loras["a"].scale) == ("a.safetensors", 0.5)


def test_loras_of_two_transformers_are_one(command: Callable[..., Any]) -> None:
    """Both have to be chosen together."""
    given = [
        {"name": "high_noise_model", "path": "h.safetensors", "strength": 1.0},
        {"name": "low_noise_model", "path": "l.safetensors", "strength": 0.8},
    ]
    (lora,) = served(command(EXPERTS | {"lora_configs": given})[1]).loras.values()
    assert lora.path is None
    assert lora.high is not None
    assert lora.low is not None
    assert (lora.high.path, lora.high.scale) == ("h.safetensors", 1.0)
    assert (lora.low.path, lora.low.scale) == ("l.safetensors", 0.8)


def test_loras_of_one_name_are_all_kept() -> None:
    """Trainers call their files the same, and all of them are added in LightX2V."""
    paths = [f"/{folder}/adapter_model.safetensors" for folder in "abc"]
    loras = convert(PLAIN | {"lora_configs": [{"path": path} for path in paths]}).settings["loras"]
    assert loras == dict(zip(("adapter_model", "adapter_model-2", "adapter_model-3"), paths, strict=True))


def test_several_loras_of_two_transformers_are_all_kept() -> None:
    given = [("high_noise_model", "h"), ("high_noise_model", "i"), ("low_noise_model", "l"), ("experts", "e")]
    configs = [{"name": name, "path": path} for name, path in given]
    loras = convert(EXPERTS | {"lora_configs": configs}).settings["loras"]
    assert list(loras.values()) == ["e", {"high": "h", "low": "l"}, {"high": "i"}]


def test_a_transformer_that_is_told_the_scale_keeps_it() -> None:
    config = {"model_cls": "flux2_dev", "enable_cfg": False, "sample_guide_scale": 4.0}
    assert convert(config).defaults == {"guidance_scale": 4.0}


def test_a_folder_in_another_layout_is_not_named(tmp_path: Path) -> None:
    config = {"model_cls": "wan2.1", "task": "t2v", "model_path": str(tmp_path)}
    assert convert(config).settings["model"] == "Wan-AI/Wan2.1-T2V-14B-Diffusers"
    (tmp_path / "model_index.json").touch()
    assert convert(config).settings["model"] == str(tmp_path)


def test_without_a_model_it_says_what_to_set(command: Callable[..., Any]) -> None:
    _, out, err = command(FP8)
    assert "model_path: set `model` to a folder in the diffusers layout" in err
    assert served(out).model == str(BUNDLED_MODEL)
    _, out, _ = command(FP8, "--model_cls", "qwen_image", "--task", "t2i")
    assert served(out).model == "Qwen/Qwen-Image-2512"


def test_an_unknown_key_is_reported(command: Callable[..., Any]) -> None:
    status, _, err = command({"infer_stepz": 4})
    assert status == 0
    assert "unknown  infer_stepz: " in err


def test_defaults_of_requests_are_written_down(command: Callable[..., Any]) -> None:
    _, out, err = command(VIDEO)
    assert f"# {json.dumps(convert(VIDEO).defaults)}" in out
    assert json.dumps(convert(VIDEO).defaults) in err


def test_into_a_file(command: Callable[..., Any], tmp_path: Path) -> None:
    status, out, _ = command(PLAIN, "-o", str(tmp_path / "ours.yaml"))
    assert (status, out) == (0, "")
    assert served((tmp_path / "ours.yaml").read_text()).model_id == "FLUX.2-klein-9B"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_cls": "hunyuan_video"}, "'hunyuan_video' is not served here; served are flux2_klein"),
        ({"model_cls": "wan2.1", "task": "vace"}, "'vace' of wan2.1 is not served here"),
        ({"infer_steps": "many"}, "infer_steps: must be a positive integer"),
        ({"size": 480}, "expected [height, width]"),
        ({"lora_configs": [{"strength": 1.0}]}, "each entry needs a path"),
        ({"vae_path": ["a.safetensors"]}, "vae_path: must be a path"),
        ({"sample_guide_scale": "big"}, "must be a number"),
        ({"cpu_offload": "always"}, "cpu_offload"),
        ([], "expected a JSON object"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_converted(command: Callable[..., Any], config: object, message: str) -> None:
    status, out, err = command(config)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_values_must_have_a_meaning() -> None:
    with pytest.raises(InvalidSettings, match="offload_granularity"):
        convert({"cpu_offload": True, "offload_granularity": "layer"})
