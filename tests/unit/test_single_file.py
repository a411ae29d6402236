"""The tensors of files by other makers: found by their names, fused ones cut, and nothing ignored in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightx2v import checkpoint
from lightx2v.checkpoint import read_stages, resolve, resolve_parts
from lightx2v.config import EngineSettings, parse_settings
from lightx2v.errors import InvalidCheckpoint, InvalidSettings
from lightx2v.weights.layout import WeightMap, make_layout, view
from lightx2v.weights.names import Rows, Table, row, rows
from lightx2v.weights.read import read_one
from lightx2v.weights.single_file import read_weights


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(4, 4), nn.Linear(4, 2)
        self.out, self.norm = nn.Linear(4, 6, bias=False), nn.LayerNorm(4)


class Part:
    """A component of one small layer of attention."""

    folder = "transformer"
    names: ClassVar[Table] = {
        "attn.qk": rows("block", "to_q", "to_k"),
        "attn.scale": row("block.norm.weight"),
        "attn.o": (Rows("block.out", 1, 2), Rows("block.out", 0, 2)),
    }
    dtype = torch.float32

    def __init__(self, folder: str = "transformer") -> None:
        self.folder = folder
        with torch.device("meta"):
            self.module: nn.Module = nn.ModuleDict({"block": Attention()})
        self.weights = WeightMap(
            (folder,),
            unreachable=frozenset({"block.norm.bias"}),
            source=lambda name: f"m.{name}",
            unread=(r"head\..*",),
        )


@pytest.fixture
def theirs() -> dict[str, torch.Tensor]:
    """In the names of the table, a linear layer as a convolution."""
    shapes: dict[str, tuple[int, ...]] = {"qk.weight": (6, 4, 1, 1), "qk.bias": (6,), "o.weight": (6, 4), "scale": (4,)}
    return {f"attn.{name}": torch.randn(shape) for name, shape in shapes.items()}


def ours(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {name.removeprefix("attn."): tensor for name, tensor in theirs.items()}
    weight, bias = named["qk.weight"].flatten(1), named["qk.bias"]
    return {
        "block.to_q.weight": weight[:4],
        "block.to_k.weight": weight[4:],
        "block.to_q.bias": bias[:4],
        "block.to_k.bias": bias[4:],
        "block.out.weight": torch.cat((named["o.weight"][3:], named["o.weight"][:3])),
        "block.norm.weight": named["scale"],
    }


def loaded(file: Path, part: Part) -> dict[str, torch.Tensor]:
    unit = make_layout(part, read_weights(part, [file]), ()).rest
    slab = read_one(unit)
    return {entry.name: view(slab, entry) for entry in unit.entries}


def refused(tensors: dict[str, torch.Tensor], path: Path, folder: str = "transformer") -> str:
    save_file(tensors, path)
    with pytest.raises(InvalidCheckpoint) as caught:
        read_weights(Part(folder), [path])
    return str(caught.value).removeprefix(f"{path}: ")


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer."])
def test_makers_names(tmp_path: Path, theirs: dict[str, torch.Tensor], prefix: str) -> None:
    save_file({f"{prefix}{name}": tensor for name, tensor in theirs.items()}, tmp_path / "a.safetensors")
    assert same(loaded(tmp_path / "a.safetensors", Part()), ours(theirs))


@pytest.mark.parametrize(
    "prefix", ["m.", "", "model.", "model.language_model.", "text_encoders.big.transformer.model."]
)
def test_own_names(tmp_path: Path, theirs: dict[str, torch.Tensor], prefix: str) -> None:
    save_file({f"{prefix}{name}": tensor.clone() for name, tensor in ours(theirs).items()}, tmp_path / "a.safetensors")
    assert same(loaded(tmp_path / "a.safetensors", Part("text_encoder")), ours(theirs))


def test_a_file_of_several_parts(tmp_path: Path, theirs: dict[str, torch.Tensor]) -> None:
    """Each part takes its own, and none takes those that name no part and that it does not know."""
    other = {name: tensor + 1 for name, tensor in theirs.items()}
    parts = {"model.diffusion_model.": theirs, "vae.": other}
    file = tmp_path / "all.safetensors"
    save_file({f"{prefix}{name}": tensor for prefix, part in parts.items() for name, tensor in part.items()}, file)
    assert same(loaded(file, Part("transformer_2")), ours(theirs))
    assert same(loaded(file, Part("vae")), ours(other))


def test_tensors_that_are_known_to_be_read_by_nobody(tmp_path: Path, theirs: dict[str, torch.Tensor]) -> None:
    names = ("m.block.norm.bias", "head.weight", "model.head.a.b", "spiece_model", "model.layers.0.rotary_emb.inv_freq")
    save_file(theirs | {name: torch.zeros(4) for name in names}, tmp_path / "a.safetensors")
    assert same(loaded(tmp_path / "a.safetensors", Part()), ours(theirs))


def test_a_whole_model_as_comfyui_saves_it(tmp_path: Path, theirs: dict[str, torch.Tensor]) -> None:
    """Its text encoders have a scale beside the transformer, whatever they are."""
    named = {f"text_encoders.qwen3_4b.transformer.model.{name}": tensor for name, tensor in ours(theirs).items()}
    extra = {f"text_encoders.{name}": torch.ones(1) for name in ("qwen3_4b.logit_scale", "spiece_model")}
    save_file({name: tensor.clone() for name, tensor in (named | extra).items()}, tmp_path / "a.safetensors")
    assert same(loaded(tmp_path / "a.safetensors", Part("text_encoder")), ours(theirs))


@pytest.mark.parametrize("name", ["attn.qk.lora", "attn.qk.bias.weight", "header.weight", "blk.0.attn_q.weight"])
def test_any_other_tensor_is_refused_by_name(tmp_path: Path, theirs: dict[str, torch.Tensor], name: str) -> None:
    said = refused(theirs | {name: torch.zeros(4)}, tmp_path / "a.safetensors")
    assert said.startswith(f"this model's transformer has no use for {name} of 5 tensors")


def test_many_are_counted(tmp_path: Path) -> None:
    said = refused({f"a.{index}": torch.zeros(1) for index in range(9)}, tmp_path / "a.safetensors", "vae")
    assert said.startswith("this model's vae has no use for a.0, a.1, a.2 and 6 more of 9 tensors")


def test_the_same_layer_under_two_names(tmp_path: Path, theirs: dict[str, torch.Tensor]) -> None:
    said = refused(theirs | {"m.block.to_q.bias": torch.zeros(4)}, tmp_path / "a.safetensors")
    assert "m.block.to_q.bias, which is there a second time" in said


@pytest.mark.parametrize("shape", [(5,), (12,), ()])
def test_a_fused_tensor_of_another_height(
    tmp_path: Path, theirs: dict[str, torch.Tensor], shape: tuple[int, ...]
) -> None:
    said = refused(theirs | {"attn.qk.bias": torch.zeros(shape)}, tmp_path / "a.safetensors")
    assert said == f"tensor attn.qk.bias has shape {list(shape)}, the configuration says 6 rows"


def settings(**parts: object) -> EngineSettings:
    return parse_settings(EngineSettings, parts, {})


def test_where_parts_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is named is downloaded."""
    asked: list[tuple[str, list[str]]] = []

    def download(repository: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    (tmp_path / "vae").mkdir()
    file, folder = tmp_path / "vae/a.safetensors", tmp_path / "vae"
    save_file({"a": torch.zeros(1)}, file)
    places = {str(file): file, str(folder): folder, "o/r/vae/a.safetensors": file, "o/r/vae": folder, "o/r": tmp_path}
    for path, place in places.items():
        assert resolve_parts(settings(vae=path), Path("model"), ["transformer", "vae"]) == [
            Path("model/transformer"),
            place,
        ]
    whole = ["*.safetensors", "*.safetensors.index.json"]
    folders = [f"vae/{pattern}" for pattern in whole]
    assert asked == [("o/r", ["vae/a.safetensors"]), ("o/r", folders), ("o/r", whole)]


def test_what_a_setting_replaces_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return repository

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    resolve(settings(model="o/m", text_encoder="a.safetensors"), ["text_encoder", "tokenizer"])
    assert asked == [["*.json", "tokenizer/*"]]


def test_where_they_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        return str(tmp_path)

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    (tmp_path / "a.ckpt").touch()
    for path, complaint in (
        (tmp_path / "b.safetensors", "no such file or folder"),
        ("o/r/b.safetensors", "neither here nor in the hub repository"),
        (tmp_path / "a.ckpt", "only .safetensors and .sft and .gguf files are read"),
    ):
        with pytest.raises(InvalidCheckpoint, match=f"^vae: {path}: {complaint}"):
            resolve_parts(settings(vae=str(path)), Path("model"), ["vae"])


@pytest.mark.parametrize("model", ["flux-2-klein-4b.safetensors", "owner/repository/a.gguf", "~/a.ckpt"])
def test_a_model_is_no_file(model: str) -> None:
    with pytest.raises(
        InvalidCheckpoint, match=f"^{model}: a file holds parts of a model; name it under `transformer`"
    ):
        resolve(settings(model=model))


@pytest.mark.parametrize("part", ["transformer_2", "image_encoder"])
def test_a_part_that_the_model_does_not_have(part: str) -> None:
    with pytest.raises(InvalidSettings, match=f"^{part}: .* has no such part; omit the setting"):
        read_stages(settings(**{part: "a.safetensors"}))


@pytest.mark.parametrize("value", ["", "  ", 1, ["a"]])
def test_settings_that_are_not_understood(value: Any) -> None:
    with pytest.raises(InvalidSettings, match=r"^transformer: "):
        settings(transformer=value)
