"""`python -m lightx2v check`: a sound checkpoint passes, and every faulty part of another is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightx2v.__main__ import main
from lightx2v.commands.check import findings
from lightx2v.config import ENVIRONMENT, EngineSettings
from lightx2v.errors import InvalidCheckpoint
from lightx2v.stages.build import load_stage
from lightx2v.types import STAGES
from lightx2v.weights.device import CpuDevice
from tests.checkpoints import lora
from tests.checkpoints.hub import serving

WEIGHTS = "diffusion_pytorch_model.safetensors"
Check = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Exit status, and the lines of the command."""
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)

    def run(model: object, *arguments: str) -> tuple[int, list[str]]:
        status = main(["check", str(model), *arguments])
        return status, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def copy(distilled: Path, tmp_path: Path) -> Path:
    """A checkpoint of its own, to be damaged."""
    return Path(shutil.copytree(distilled, tmp_path / "model"))


def faults(lines: list[str]) -> dict[str, str]:
    found = (line.removeprefix("FAULT  ").partition(": ") for line in lines if line.startswith("FAULT  "))
    return {part: message for part, _, message in found}


def test_a_sound_checkpoint(check: Check, distilled: Path, oil: Path) -> None:
    status, lines = check(distilled, "--loras", f"oil={oil}")
    assert status == 0
    assert [line.split(maxsplit=1) for line in lines[:-1]] == [
        ["ok", part] for part in ("configurations", "encode", "denoise", "decode", "lora oil")
    ]
    assert lines[-1] == f"{distilled}: can be served"


def test_a_sound_checkpoint_of_each_kind(family: Path) -> None:
    assert {
        finding.part: finding.fault for finding in findings(EngineSettings(model=str(family))) if finding.fault
    } == {}


def truncate(model: Path) -> None:
    file = model / "transformer" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1])


def reshape(model: Path) -> None:
    tensors = load_file(model / "transformer" / WEIGHTS)
    tensors["proj_out.weight"] = torch.zeros(1, 2)
    save_file(tensors, model / "transformer" / WEIGHTS)


def lose_tensor(model: Path) -> None:
    tensors = load_file(model / "transformer" / WEIGHTS)
    del tensors["proj_out.weight"]
    save_file(tensors, model / "transformer" / WEIGHTS)


def lose_file(model: Path) -> None:
    (model / "transformer" / WEIGHTS).unlink()


def lose_shard(model: Path) -> None:
    index = {"weight_map": {"proj_out.weight": "model-00001-of-00002.safetensors"}}
    (model / "transformer" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def lose_configuration(model: Path) -> None:
    (model / "transformer" / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "not a complete safetensors file"),
        (reshape, r"tensor proj_out.weight has shape [1, 2], the configuration says"),
        (lose_tensor, "the weights lack the tensor proj_out.weight"),
        (lose_file, "expected one safetensors or GGUF file"),
        (lose_shard, "model-00001-of-00002.safetensors: this weight file is missing"),
        (lose_configuration, "config.json: no such file"),
    ],
)
def test_a_faulty_transformer(check: Check, copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    status, lines = check(copy)
    assert status == 1
    found = faults(lines)
    assert list(found) == ["denoise"]
    assert message in found["denoise"]
    with pytest.raises(InvalidCheckpoint) as raised:
        load_stage("denoise", EngineSettings(model=str(copy)), CpuDevice())
    assert str(raised.value) == found["denoise"], "what a server would say"


def test_every_fault_is_named(check: Check, copy: Path, oil: Path) -> None:
    truncate(copy)
    shutil.rmtree(copy / "tokenizer")
    (copy / "vae" / WEIGHTS).write_bytes(b"")
    status, lines = check(copy, "--loras", f"oil={oil}")
    assert status == 1
    found = faults(lines)
    assert list(found) == ["encode", "denoise", "decode", "lora oil"]
    assert "tokenizer: no such folder" in found["encode"]
    assert "was not looked at" in found["lora oil"]
    assert lines[-1] == f"{copy}: cannot be served (4 faults)"


def test_every_lora_is_looked_at(check: Check, distilled: Path, oil: Path, tmp_path: Path) -> None:
    tensors = {"transformer.nowhere.lora_A.weight": torch.zeros(2, 2)}
    other = lora.write(tmp_path / "other.safetensors", tensors)
    status, lines = check(distilled, "--loras", f"a={other},oil={oil},b={tmp_path}/gone.safetensors")
    assert status == 1
    found = faults(lines)
    assert list(found) == ["lora a", "lora b"]
    assert "belongs to no linear layer" in found["lora a"]
    assert "no such file" in found["lora b"]


def test_what_is_no_checkpoint(check: Check, tmp_path: Path) -> None:
    status, lines = check(tmp_path)
    assert status == 1
    assert "model_index.json: no such file" in faults(lines)["configurations"]
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert "'FluxPipeline' is not supported" in faults(check(tmp_path)[1])["configurations"]


def test_a_repository(check: Check, distilled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its weights are not downloaded."""
    from huggingface_hub import HfApi

    with serving("owner/tiny", distilled) as hub:
        monkeypatch.setattr("lightx2v.commands.headers.HfApi", lambda: HfApi(endpoint=hub.endpoint))
        monkeypatch.chdir(tmp_path)
        status, lines = check("owner/tiny")
        assert hub.weight_bytes < sum(file.stat().st_size for file in distilled.rglob("*.safetensors"))
    assert (status, lines[-1]) == (0, "owner/tiny: can be served")


def test_all_stages_are_looked_at(wan_experts: Path) -> None:
    found = [finding.part for finding in findings(EngineSettings(model=str(wan_experts)))]
    assert found == ["configurations", *STAGES]
