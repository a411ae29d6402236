"""LoRA files: understood in every spelling, or refused by the first key that does not fit; and requests for them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightx2v import checkpoint
from lightx2v.checkpoint import resolve_loras
from lightx2v.config import EngineSettings, LoraSettings, parse_settings
from lightx2v.errors import InvalidCheckpoint, InvalidRequest, InvalidSettings
from lightx2v.limits import Limits
from lightx2v.models.request import choose_loras
from lightx2v.types import ChosenLora, GenerateRequest, LoraFile
from lightx2v.weights.adapters import Adapters
from lightx2v.weights.device import CpuDevice
from lightx2v.weights.layout import same_name
from lightx2v.weights.lora import read_lora
from lightx2v.weights.lora_products import Strip
from lightx2v.weights.lora_scale import lora_scale, read_configuration
from lightx2v.weights.names import Rows, Table, expand, row, rows
from tests.checkpoints.lora import Tensors, write
from tests.unit.toy import REQUEST, WIDTH, Toy, activated, expected, load_toy, one_pass, write_toy

DOWN, UP = torch.ones(2, WIDTH), torch.ones(WIDTH, 2)
GOOD: Tensors = {"entry.lora_A.weight": DOWN, "entry.lora_B.weight": UP}
HIDDEN = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)


class Named(Toy):
    """Its checkpoint calls the layers as the module does; two of them are one to others."""

    names: Table = MappingProxyType({"pair.0": rows("blocks", "0.0", "1.0"), "gone": row("blocks.9.0")})
    kept: ClassVar[dict[str, Any]] = {"source": same_name}


class Renamed(Named):
    kept: ClassVar[dict[str, Any]] = {}


def scales(file: Path) -> dict[str, float]:
    return {branch.path: branch.scale for branch in read_lora(file, Named()).branches}


@pytest.mark.parametrize(
    ("stem", "down", "up"),
    [
        ("transformer.blocks.2.0", "lora_A", "lora_B"),
        ("diffusion_model.blocks.2.0", "lora_A", "lora_B"),
        ("base_model.model.blocks.2.0", "lora_A", "lora_B"),
        ("blocks.2.0", "lora_A", "lora_B"),
        ("diffusion_model.blocks.2.0", "lora_down", "lora_up"),
        ("lora_unet_blocks_2_0", "lora_down", "lora_up"),
    ],
)
def test_spellings(tmp_path: Path, stem: str, down: str, up: str) -> None:
    file = write(tmp_path / "a.safetensors", {f"{stem}.{down}.weight": DOWN, f"{stem}.{up}.weight": UP})
    (branch,) = read_lora(file, Named()).branches
    assert (branch.path, branch.scale) == ("blocks.2.0", 1.0)


def test_layers_are_called_as_in_the_checkpoint(tmp_path: Path) -> None:
    tensors = {"transformer.model.entry.lora_A.weight": DOWN, "transformer.model.entry.lora_B.weight": UP}
    (branch,) = read_lora(write(tmp_path / "a.safetensors", tensors), Renamed()).branches
    assert branch.path == "entry"


@pytest.mark.parametrize("stem", ["diffusion_model.pair.0", "lora_unet_pair_0"])
def test_one_name_for_two_layers(tmp_path: Path, stem: str) -> None:
    tensors = {f"{stem}.lora_down.weight": DOWN, f"{stem}.lora_up.weight": torch.ones(2 * WIDTH, 2)}
    lora = read_lora(write(tmp_path / "a.safetensors", tensors), Named())
    assert [(branch.path, branch.strip) for branch in lora.branches] == [
        ("blocks.0.0", Strip(0, WIDTH, 0)),
        ("blocks.1.0", Strip(WIDTH, 2 * WIDTH, 0)),
    ]


def test_the_halves_of_a_layer_the_other_way_round(tmp_path: Path) -> None:
    swapped = Named()
    swapped.names = {"swapped": (Rows("entry", 1, 2), Rows("entry", 0, 2))}
    tensors = {"swapped.lora_down.weight": DOWN, "swapped.lora_up.weight": UP}
    lora = read_lora(write(tmp_path / "a.safetensors", tensors), swapped)
    half = WIDTH // 2
    assert [branch.strip for branch in lora.branches] == [Strip(0, half, half), Strip(half, WIDTH, 0)]


def test_stars_stand_for_numbers() -> None:
    table = {"a.*.b.*": rows("x.*.y", "*.p", "*.q"), "c.*": row("z.*")}
    there = ["x.0.y.1.p", "x.0.y.1.q", "x.3.y.12.p", "x.3.y.12.q", "x.4.y.0.p", "xx.0.y.1.p", "z.a"]
    assert expand(table, there) == {
        "a.0.b.1": rows("x.0.y", "1.p", "1.q"),
        "a.3.b.12": rows("x.3.y", "12.p", "12.q"),
    }


HEADER = {"transformer.lora_alpha": 6, "transformer.alpha_pattern": {"blocks.[01].0": 8}, "text_encoder.lora_alpha": 1}


@pytest.mark.parametrize(
    ("tensors", "header", "scale"),
    [
        ({}, None, 1.0),
        ({"entry.alpha": torch.tensor(5.0)}, None, 2.5),
        ({"entry.alpha": torch.tensor([0.5], dtype=torch.bfloat16)}, None, 0.25),
        ({}, HEADER, 3.0),
        ({"entry.alpha": torch.tensor(5.0)}, HEADER, 2.5),
        ({}, {"transformer.lora_alpha": 6, "transformer.use_rslora": True}, 6 / 2**0.5),
        ({}, {"transformer.lora_alpha": 6, "transformer.alpha_pattern": {"entry": 1}}, 0.5),
        ({}, {"transformer.lora_alpha": 6, "transformer.alpha_pattern": {"ntry": 1}}, 3.0),
        ({}, {"text_encoder.lora_alpha": 6}, 1.0),
    ],
)
def test_scale(tmp_path: Path, tensors: Tensors, header: dict[str, Any] | None, scale: float) -> None:
    metadata = header and {"lora_adapter_metadata": json.dumps(header)}
    assert scales(write(tmp_path / "a.safetensors", GOOD | tensors, metadata)) == {"entry": pytest.approx(scale)}


def test_pefts_own_two_files(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{key}": tensor for key, tensor in GOOD.items()}
    file = write(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 16, "alpha_pattern": {}}))
    assert scales(file) == {"entry": 8.0}
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(InvalidCheckpoint, match="its LoRA configuration cannot be read"):
        scales(file)


BAD: dict[str, tuple[Tensors, str]] = {
    "empty": ({}, "there is nothing in it"),
    "another part": (GOOD | {"entry.oft_blocks": DOWN}, "entry.oft_blocks is no part of a LoRA"),
    "half a product": (GOOD | {"entry.lokr_w1": DOWN}, "entry.lokr_w1 has no lokr_w2_a part beside it"),
    "another product": (
        {"entry.lokr_w1": DOWN, "entry.lokr_w2": DOWN},
        r"entry.lokr_w1 and its neighbours change a matrix of \[4, 256\], the model has room for \[16, 16\]",
    ),
    "tucker": (GOOD | {"entry.lokr_t2": DOWN}, "entry.lokr_t2 is no part of a LoRA"),
    "dora": (GOOD | {"entry.dora_scale": DOWN[:1]}, r"shape \[1, 16\]; supported are the norms of the 16 rows"),
    "merged": (GOOD | {"entry.diff_b": DOWN}, r"entry.diff_b has shape \[2, 16\]"),
    "text encoder": (
        {"text_encoder.entry.lora_A.weight": DOWN},
        "there is nothing in it for the transformer",
    ),
    "another model": (
        {"lora_unet_down_blocks_0.lora_down.weight": DOWN},
        "lora_unet_down_blocks_0.lora_down.weight bel",
    ),
    "not linear": (
        {"table.lora_A.weight": DOWN, "table.lora_B.weight": UP},
        "table.lora_A.weight belongs to no linear",
    ),
    "alias of none": (
        {"gone.lora_A.weight": DOWN, "gone.lora_B.weight": UP},
        "gone.lora_A.weight belongs to no linear",
    ),
    "no up": ({"entry.lora_A.weight": DOWN}, "entry.lora_A.weight has no up part"),
    "no down": ({"entry.lora_B.weight": UP}, "entry.lora_B.weight has no down part"),
    "alpha alone": ({"entry.alpha": torch.tensor(1.0)}, "entry.alpha has no down part"),
    "twice": (GOOD | {"transformer.entry.lora_A.weight": 2 * DOWN}, "is there a second time, as"),
    "width in": (
        GOOD | {"entry.lora_A.weight": torch.ones(2, 8)},
        r"lora_A.weight has shape \[2, 8\].*room for \[2, 16\]",
    ),
    "width out": (GOOD | {"entry.lora_B.weight": torch.ones(8, 2)}, r"lora_B.weight has shape \[8, 2\]"),
    "ranks": (GOOD | {"entry.lora_B.weight": torch.ones(WIDTH, 3)}, r"lora_B.weight has shape \[16, 3\]"),
    "rank 0": (
        {"entry.lora_A.weight": DOWN[:0], "entry.lora_B.weight": UP[:, :0]},
        r"lora_A.weight has shape \[0, 16\]",
    ),
    "convolution": (GOOD | {"entry.lora_A.weight": DOWN[..., None, None]}, r"lora_A.weight has shape \[2, 16, 1, 1\]"),
    "scalar": (GOOD | {"entry.lora_A.weight": torch.tensor(1.0)}, r"lora_A.weight has shape \[\]"),
    "integers": (GOOD | {"entry.lora_A.weight": DOWN.to(torch.int8)}, "which is no weight"),
    "alpha nan": (GOOD | {"entry.alpha": torch.tensor(torch.nan)}, "entry.alpha has the alpha nan"),
    "alphas": (GOOD | {"entry.alpha": torch.ones(2)}, "entry.alpha has the alpha nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    tensors, complaint = BAD[case]
    file = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(InvalidCheckpoint, match=complaint) as caught:
        read_lora(file, Named())
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"transformer.use_dora": true}', "use_dora"),
        ('{"transformer.lora_alpha": "6"}', "lora_alpha: "),
        ('{"transformer.lora_alpha": NaN}', "lora_alpha: "),
        ('{"transformer.alpha_pattern": {"entry": true}}', "alpha_pattern.entry: "),
        ('{"transformer.alpha_pattern": {"*": 1}}', r"alpha_pattern.*'\*' is no regular expression"),
        ('{"transformer.alpha_pattern": {"a{99999999999999999999}": 1}}', "is no regular expression"),
        ('{"transformer.alpha_pattern": ["entry"]}', "alpha_pattern: "),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_header_that_is_not_understood(tmp_path: Path, header: str, complaint: str) -> None:
    file = write(tmp_path / "a.safetensors", GOOD, {"lora_adapter_metadata": header})
    with pytest.raises(InvalidCheckpoint, match=complaint) as caught:
        read_lora(file, Named())
    assert str(caught.value).startswith(f"{file}: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
)
FIELDS = st.sampled_from(("lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "r"))
STATED = st.dictionaries(FIELDS, JSON | st.dictionaries(st.text("ae(*)[]{1}.+?\\", max_size=6), JSON), max_size=5)


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@given(stated=STATED | JSON, in_header=st.booleans())
def test_whatever_a_configuration_says_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, stated: Any, in_header: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "stated"
    folder.mkdir(exist_ok=True)
    prefixed = {f"transformer.{key}": value for key, value in stated.items()} if isinstance(stated, dict) else stated
    metadata = {"lora_adapter_metadata": json.dumps(prefixed)} if in_header else None
    file = write(folder / "adapter_model.safetensors", {"alpha": torch.tensor(1.0)}, metadata)
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    try:
        outcome: float | str = lora_scale(read_configuration(file), None, "a.e", 2)
    except InvalidCheckpoint as error:
        outcome = str(error)
    assert outcome.startswith(f"{file}: ") if isinstance(outcome, str) else math.isfinite(outcome)


def test_a_truncated_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", GOOD)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InvalidCheckpoint, match="not a complete safetensors file"):
        read_lora(file, Named())


@pytest.mark.parametrize("lazy", [False, True])
def test_more_tokens_than_are_multiplied_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lazy: bool) -> None:
    monkeypatch.setattr("lightx2v.weights.lora_products.TOKENS", 2)
    state = write_toy(tmp_path / "toy")
    toy, residence = load_toy(tmp_path, CpuDevice(), lazy=lazy)
    toy.names = {}
    file = write(tmp_path / "a.safetensors", {f"model.{key}": tensor for key, tensor in GOOD.items()})
    adapters = Adapters(toy, {"a": LoraFile(file)}, CpuDevice(), lazy)
    request = GenerateRequest("toy", "a prompt", REQUEST.size, 2, 0, loras=(ChosenLora("a", 0.5),))
    merged = state | {"entry.weight": state["entry.weight"] + 0.5 * UP @ DOWN}
    with torch.inference_mode(), one_pass(residence, residence.reachable), activated(adapters, request, toy.blocks):
        torch.testing.assert_close(toy.module(HIDDEN), expected(merged, HIDDEN), rtol=1e-5, atol=1e-3)
    with torch.inference_mode(), one_pass(residence, residence.reachable), activated(adapters, REQUEST, toy.blocks):
        assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))
    adapters.close()


def test_a_layer_that_is_precise_is_added_to_precisely(tmp_path: Path) -> None:
    toy = Named(dtype=torch.bfloat16)
    toy.weights = replace(toy.weights, precise=frozenset({"entry.weight", "entry.bias"}))
    tensors = GOOD | {"blocks.0.0.lora_A.weight": DOWN, "blocks.0.0.lora_B.weight": UP}
    unit = read_lora(write(tmp_path / "a.safetensors", tensors), toy).unit
    assert {entry.name.split(".")[0]: entry.dtype for entry in unit.entries} == {
        "entry": torch.float32,
        "blocks": torch.bfloat16,
    }


def asked(**fields: Any) -> GenerateRequest:
    return GenerateRequest("lora", "a prompt", REQUEST.size, 2, 0, **fields)


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        ((None, None, None), ()),
        (("oil", None, None), (ChosenLora("oil"),)),
        (("ink", -10.0, None), (ChosenLora("ink", -10.0),)),
        ((None, 1.0, None), ()),
        ((None, None, [ChosenLora("ink"), ChosenLora("oil", 0.5)]), (ChosenLora("ink"), ChosenLora("oil", 0.5))),
        ((None, None, []), ()),
    ],
)
def test_what_may_be_asked_for(fields: tuple[Any, Any, Any], chosen: tuple[ChosenLora, ...]) -> None:
    assert choose_loras(*fields) == chosen
    Limits(loras=("oil", "ink")).check(asked(loras=chosen), 16)


@pytest.mark.parametrize(
    ("fields", "known", "message"),
    [
        (("water", None, None), ("oil", "ink"), "lora: 'water' is not served here; known are ink, oil"),
        (("water", None, None), (), "lora: 'water' is not served here; none is configured"),
        (("", None, None), ("oil",), "lora: '' is not served here; known are oil"),
        (("oil", 10.5, None), ("oil",), "lora_scale: must be from -10 to 10, got 10.5"),
        (("oil", float("nan"), None), ("oil",), "lora_scale: must be from -10 to 10, got nan"),
        ((None, 0.5, None), ("oil",), "lora_scale: has no meaning without a lora"),
        (("oil", None, [ChosenLora("oil")]), ("oil",), "loras: give these or lora with lora_scale, not both"),
        ((None, 0.5, [ChosenLora("oil")]), ("oil",), "loras: give these or lora with lora_scale, not both"),
        ((None, None, [ChosenLora("oil")] * 2), ("oil",), "loras: one of them is named twice"),
        ((None, None, [ChosenLora(name) for name in "abcdefghi"]), tuple("abcdefghi"), "loras: at most 8, got 9"),
    ],
)
def test_what_may_not(fields: tuple[Any, Any, Any], known: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Limits(loras=known).check(asked(loras=choose_loras(*fields)), 16)
    assert str(caught.value) == message
    assert caught.value.param == message.partition(":")[0]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"oil": "a.safetensors"}, {"oil": "a.safetensors"}),
        ("oil=a.safetensors", {"oil": "a.safetensors"}),
        ("oil=a=b, ink=c d", {"oil": "a=b", "ink": "c d"}),
        ("", {}),
    ],
)
def test_settings(value: object, names: dict[str, str]) -> None:
    loras = parse_settings(EngineSettings, {"loras": value}, {}).loras
    assert loras == {name: LoraSettings(path=path) for name, path in names.items()}


@pytest.mark.parametrize("value", ["oil", "oil=", "=a", {"oil": ""}, {" ": "a"}, {"oil": 1}, ["a"], None])
def test_settings_that_are_not_understood(value: object) -> None:
    with pytest.raises(InvalidSettings, match=r"^loras"):
        parse_settings(EngineSettings, {"loras": value}, {})


def resolved(path: object) -> LoraFile:
    return resolve_loras(EngineSettings(loras={"oil": LoraSettings(path=str(path))}), "denoise")["oil"]


def test_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a/one.safetensors", GOOD)
    asked_for: list[tuple[str, list[str]]] = []

    def download(repository: str, allow_patterns: list[str], **_: object) -> str:
        asked_for.append((repository, allow_patterns))
        return str(file.parent)

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    for path in (file, file.parent, "owner/repository", "owner/repository/one.safetensors"):
        assert resolved(path) == LoraFile(file)
    assert asked_for == [
        ("owner/repository", ["*.safetensors", "adapter_config.json"]),
        ("owner/repository", ["one.safetensors"]),
    ]


def test_where_they_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise OSError("offline")

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    (tmp_path / "none").mkdir()
    for name in "ab":
        write(tmp_path / f"two/{name}.safetensors", GOOD)
    for path, complaint in (
        (tmp_path / "nowhere", "no such file or folder"),
        ("./nowhere", "no such file or folder"),
        (tmp_path / "none", "holds 0 safetensors files"),
        (tmp_path / "two", "holds 2 safetensors files; name one of them"),
        ("owner/repository", "neither here nor to be downloaded \\(offline\\)"),
    ):
        found = resolved(path)
        assert found.path is None
        assert re.match(f"lora oil: {path}: {complaint}", found.refusal)
