"""What LoRAs of every kind add to linear layers, against PEFT; and to the states of others, against torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, get_peft_model
from torch import nn

from lightx2v.config import LoraSettings
from lightx2v.errors import InvalidCheckpoint, InvalidRequest
from lightx2v.models.fp8 import keep_in_fp8
from lightx2v.types import ChosenLora, GenerateRequest, LoraFile
from lightx2v.weights.adapters import Adapters
from lightx2v.weights.device import CpuDevice
from lightx2v.weights.lora import read_lora
from tests.checkpoints.lora import Tensors, write
from tests.unit.toy import REQUEST, WIDTH, Toy, ToyModule, activated, expected, load_toy, one_pass, write_toy

HIDDEN = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)
TARGETS = ["entry", *(f"blocks.{index}.0" for index in range(4))]


class Wrapped(nn.Module):
    """The module under the name that its checkpoint has for it."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.model = ToyModule(4)
        self.model.load_state_dict(state)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.model(hidden)
        return output


@contextmanager
def adapted(folder: Path, files: dict[str, LoraFile], *chosen: ChosenLora) -> Iterator[Toy]:
    """The toy in `folder` within a run that has chosen LoRAs."""
    toy, residence = load_toy(folder, CpuDevice())
    toy.names = {}
    adapters = Adapters(toy, files, CpuDevice(), lazy=True)
    request = GenerateRequest("toy", "a prompt", REQUEST.size, 2, 0, loras=chosen)
    with torch.inference_mode(), one_pass(residence, residence.reachable - 1), activated(adapters, request, toy.blocks):
        yield toy
    residence.close()


@pytest.mark.filterwarnings("ignore:Adapter 'default'")
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS),
        LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, lora_bias=True),
        LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_dora=True),
        LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_dora=True, use_rslora=True),
        LoKrConfig(r=2, alpha=3, target_modules=TARGETS),
        LoKrConfig(r=2, alpha=3, target_modules=TARGETS, decompose_both=True, decompose_factor=4),
        LoKrConfig(r=16, alpha=3, target_modules=TARGETS),
        LoHaConfig(r=3, alpha=5, target_modules=TARGETS),
    ],
    ids=["lora", "bias", "dora", "rsdora", "lokr", "lokr-both", "lokr-whole", "loha"],
)
def test_like_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: PeftConfig, scale: float) -> None:
    """In several pieces, each of them, and with a layer whose weights go as soon as it is left."""
    monkeypatch.setattr(Toy, "kept", {"blocks": tuple(TARGETS[1:])})
    for limit in ("TOKENS", "HADAMARD_RANK", "NORM_ROWS"):
        monkeypatch.setattr(f"lightx2v.weights.lora_products.{limit}", 2)
    state = write_toy(tmp_path / "toy")
    config.inference_mode = False
    oracle: Any = get_peft_model(Wrapped(state), config)
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if "default" in name:
                parameter.copy_(parameter.abs() + 0.1 if "magnitude" in name else 0.3 * torch.randn(parameter.shape))
    oracle.save_pretrained(tmp_path / "peft")
    for layer in oracle.modules():
        if hasattr(layer, "scale_layer"):
            layer.scale_layer(scale)
    files = {"a": LoraFile(tmp_path / "peft/adapter_model.safetensors")}
    with adapted(tmp_path, files, ChosenLora("a", scale)) as toy:
        torch.testing.assert_close(toy.module(HIDDEN), oracle(HIDDEN), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(oracle(HIDDEN), expected(state, HIDDEN), atol=0.1), "or nothing was compared"


def lora_of(layer: str, seed: int) -> tuple[Tensors, torch.Tensor]:
    """A LoRA of one layer, and the difference that it makes."""
    random = torch.Generator().manual_seed(seed)
    down, up = torch.randn(2, WIDTH, generator=random), torch.randn(WIDTH, 2, generator=random)
    return {f"model.{layer}.lora_A.weight": down, f"model.{layer}.lora_B.weight": up}, up @ down


def test_several_add_up_each_with_its_scales(tmp_path: Path) -> None:
    state = write_toy(tmp_path / "toy")
    (oil, painted), (ink, drawn) = lora_of("entry", 1), lora_of("entry", 2)
    files = {
        "oil": LoraFile(write(tmp_path / "oil.safetensors", oil), 0.5),
        "ink": LoraFile(write(tmp_path / "ink.safetensors", ink)),
        "none": LoraFile(None),
    }
    merged = state | {"entry.weight": state["entry.weight"] + 0.5 * 0.8 * painted - 0.3 * drawn}
    chosen = (ChosenLora("oil", 0.8), ChosenLora("none"), ChosenLora("ink", -0.3))
    with adapted(tmp_path, files, *chosen) as toy:
        torch.testing.assert_close(toy.module(HIDDEN), expected(merged, HIDDEN), rtol=1e-4, atol=1e-3)


def test_all_of_their_bytes_are_workspace(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    toy, _ = load_toy(tmp_path, CpuDevice())
    toy.names = {}
    files = {name: LoraFile(write(tmp_path / f"{name}.safetensors", lora_of("entry", 1)[0])) for name in "ab"}
    adapters = Adapters(toy, files, CpuDevice(), lazy=True)
    one, both = (
        adapters.workspace(GenerateRequest("toy", "", REQUEST.size, 2, 0, loras=tuple(map(ChosenLora, names))))
        for names in ("a", "ab")
    )
    assert both == 2 * one > 0


def test_a_bad_one_refuses_only_those_who_ask_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_toy(tmp_path / "toy")
    good, _ = lora_of("entry", 1)
    files = {
        "good": LoraFile(write(tmp_path / "good.safetensors", good)),
        "bad": LoraFile(write(tmp_path / "bad.safetensors", {"entry.oft_blocks": torch.ones(1)})),
        "gone": LoraFile(None, refusal="lora gone: /nowhere: no such file"),
    }
    with adapted(tmp_path, files, ChosenLora("good")):
        pass
    assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == ["ERROR", "ERROR"]
    assert "the LoRA bad cannot be used" in caplog.text
    for name, reason in (("bad", "entry.oft_blocks is no part of a LoRA"), ("gone", "lora gone: /nowhere")):
        refused = pytest.raises(InvalidRequest, match=f"^lora: '{name}' cannot be used: .*{reason}")
        with refused as caught, adapted(tmp_path, files, ChosenLora("good"), ChosenLora(name)):
            pass
        assert caught.value.param == "lora"


class Normed(ToyModule):
    """With states of every other kind."""

    def __init__(self, blocks: int, width: int = WIDTH) -> None:
        super().__init__(blocks, width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, 3, padding=1)
        self.modulation = nn.Parameter(torch.empty(1, width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.mix(self.norm(super().forward(hidden)).t()).t() * self.modulation
        return mixed


def test_states_of_other_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.toy.ToyModule", Normed)
    state = write_toy(tmp_path / "toy")
    wide = (WIDTH,)
    shapes = {".norm.diff": wide, ".norm.diff_b": wide, ".mix.diff": (WIDTH, WIDTH, 3), ".mix.diff_b": wide}
    changes = {f"model{key}": torch.randn(shape) for key, shape in shapes.items()}
    changes |= {"model.diff_m": torch.randn(1, WIDTH), "model.entry.diff_b": torch.randn(WIDTH)}
    states = ("norm.weight", "norm.bias", "mix.weight", "mix.bias", "modulation", "entry.bias")
    merged = {name: state[name] + 0.5 * change for name, change in zip(states, changes.values(), strict=True)}
    zero = {"model.cross_attn.norm_k_img.diff": torch.zeros(WIDTH)}
    files = {"a": LoraFile(write(tmp_path / "a.safetensors", changes | zero))}
    with adapted(tmp_path, files, ChosenLora("a", 0.5)) as toy:
        for _ in range(2):
            torch.testing.assert_close(toy.module(HIDDEN), expected(state | merged, HIDDEN), rtol=1e-4, atol=1e-3)
    with adapted(tmp_path, files) as toy:
        assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))


def test_a_difference_of_what_is_not_there(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    toy, _ = load_toy(tmp_path, CpuDevice())
    toy.names = {}
    good, _ = lora_of("entry", 1)
    file = write(tmp_path / "a.safetensors", good | {"model.norm_k_img.diff": torch.full((3,), 0.1)})
    with pytest.raises(InvalidCheckpoint, match=r"model\.norm_k_img\.diff belongs to no linear layer"):
        read_lora(file, toy)


def test_norms_of_weights_in_fp8_are_not_known(tmp_path: Path) -> None:
    toy: Any = keep_in_fp8(Toy(1))
    toy.names = {}
    good, _ = lora_of("blocks.0.0", 1)
    file = write(tmp_path / "a.safetensors", good | {"model.blocks.0.0.dora_scale": torch.ones(WIDTH, 1)})
    with pytest.raises(InvalidCheckpoint, match="dora_scale needs the norms of weights that are kept quantised"):
        read_lora(file, toy)


def test_text_encoders_keys_are_named_in_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    toy = Toy()
    toy.names = {}
    stems = ("lora_te_text_model_0", "lora_te1_a", "lora_te2_a", "text_encoder.a", "text_encoder_2.a", "bundle_emb.x")
    good, _ = lora_of("entry", 1)
    text = {f"{stem}.lora_{part}.weight": torch.ones(1) for stem in stems for part in ("down", "up")}
    with caplog.at_level(logging.WARNING):
        lora = read_lora(write(tmp_path / "a.safetensors", good | text), toy)
    assert [branch.path for branch in lora.branches] == ["entry"]
    (record,) = caplog.records
    assert "bundle_emb.x.lora_down.weight" in record.getMessage()
    assert "and 4 more belong to the text encoder" in record.getMessage()


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({}, "name one path, or high and low"),
        ({"path": "a", "low": "b"}, "name one path, or high and low"),
        ({"path": "a", "steps": 0}, "greater than 0"),
        ({"path": "a", "shift": 0}, "greater than 0"),
        ({"path": "a", "weight": 1}, "unknown setting 'weight'"),
        ({"high": {"path": " "}}, "may be empty"),
    ],
)
def test_settings_that_cannot_be(value: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LoraSettings.model_validate(value)
