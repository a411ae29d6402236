"""What an operator can set: understood, or refused in one sentence before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.settings import Fractions, ModelSettings, parse_application
from lightx2v.config import BUNDLED_MODEL, ENVIRONMENT, EngineSettings, did_you_mean, parse_bytes, parse_settings
from lightx2v.errors import InvalidSettings
from lightx2v.types import STAGES, Policy, StageName

ROOT = Path(__file__).parents[2]
KINDS = pytest.mark.parametrize("kind", [EngineSettings, ModelSettings])
Kind = type[EngineSettings]
THREE: tuple[StageName, ...] = ("encode", "denoise", "decode")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the developer has exported."""
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)


def refused(values: dict[Any, Any], kind: Kind = EngineSettings) -> str:
    with pytest.raises(InvalidSettings) as caught:
        parse_settings(kind, values)
    message = str(caught.value)
    assert "\n" not in message
    assert "Value error" not in message
    return message


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("24GiB", 24 * 2**30),
        ("31.35 GiB", int(31.35 * 2**30)),
        ("31.35GiB", int(31.35 * 2**30)),
        ("500MB", 500_000_000),
        ("500 mib", 500 * 2**20),
        ("1gb", 10**9),
        ("3kB", 3000),
        ("3KiB", 3072),
        ("7 B", 7),
        (" 1024 ", 1024),
        ("0.5KiB", 512),
    ],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes
    assert parse_settings(EngineSettings, {"gpu_budget": text}).gpu_budget == nbytes


NOT_SIZES = [
    "",
    "9" * 400,
    "9" * 300 + "GiB",
    "GiB",
    "24 gigs",
    "24G",
    "-1GiB",
    "1e9",
    "1,5GiB",
    ".5GiB",
    "5.GiB",
    "nan",
    "inf",
    "0x10",
    "1 2 GiB",
]


@pytest.mark.parametrize("text", NOT_SIZES, ids=lambda text: text[:9])
def test_what_is_not_a_size_is_refused_with_an_example(text: str) -> None:
    message = refused({"gpu_budget": text})
    assert message.startswith("gpu_budget: ")
    assert text in message
    assert "24GiB" in message


@given(st.text() | st.from_regex(r"\s*[0-9.]{1,400}\s*[a-zA-Z]{0,3}", fullmatch=True))
def test_a_size_is_a_whole_number_or_a_value_error(text: str) -> None:
    try:
        nbytes = parse_bytes(text)
    except ValueError:
        return
    assert type(nbytes) is int
    assert nbytes >= 0


@pytest.mark.parametrize("value", [0, "0", "0.1", -1, "0GiB"])
def test_a_budget_is_positive(value: object) -> None:
    assert refused({"gpu_budget": value}) == "gpu_budget: must be positive"


@pytest.mark.parametrize("value", [1.5, [], {}, float("nan"), True])
def test_a_budget_is_bytes(value: object) -> None:
    assert refused({"gpu_budget": value}).startswith("gpu_budget: ")


def test_budgets_in_bytes_and_none() -> None:
    assert parse_settings(EngineSettings, {"gpu_budget": 123}).gpu_budget == 123
    assert parse_settings(EngineSettings, {"gpu_budget": None}).gpu_budget is None
    assert parse_settings(EngineSettings, {}).gpu_budget is None


@KINDS
@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("modle", "model"),
        ("gpu_buget", "gpu_budget"),
        ("cpu_ofload", "cpu_offload"),
        ("offload_granularit", "offload_granularity"),
        ("lazyload", "lazy_load"),
        ("DTYPE", None),
        ("flux", None),
    ],
)
def test_an_unknown_key_names_the_nearest_known(kind: Kind, key: str, meant: str | None) -> None:
    message = refused({key: 1}, kind)
    assert f"unknown setting {key!r}" in message
    assert (f"did you mean {meant!r}?" in message) if meant else ("did you mean" not in message)
    assert all(name in message for name in kind.model_fields)


def test_keys_of_the_application() -> None:
    assert "did you mean 'max_replicas'?" in refused({"max_replica": 1}, ModelSettings)
    assert "did you mean" not in refused({"max_replicas": 1}, EngineSettings)
    assert did_you_mean("queue_max", ["max_queue", "name"]) == "; did you mean 'max_queue'?"


def test_a_key_that_is_no_text_is_unknown_too() -> None:
    """As YAML makes of `1: x`."""
    assert "unknown setting 1" in refused({1: "x"})


def test_fractions_are_per_stage() -> None:
    fractions = parse_settings(ModelSettings, {"gpu_fractions": {"encode": 0.1}}).gpu_fractions
    assert (fractions.encode, fractions.denoise, fractions.decode) == (0.1, 0.6, 0.2)
    assert "did you mean 'encode'?" in refused({"gpu_fractions": {"encod": 0.1}}, ModelSettings)


@pytest.mark.parametrize("value", [0, -0.1, 1.1, float("nan"), "much"])
def test_fractions_are_of_one_card(value: object) -> None:
    assert refused({"gpu_fractions": {"denoise": value}}, ModelSettings).startswith("gpu_fractions.denoise: ")


@pytest.mark.parametrize(
    ("fractions", "sets"),
    [
        ((0.2, 0.6, 0.2), 1),
        ((0.1, 0.3, 0.1), 2),
        ((0.1, 0.1, 0.1), 3),
        ((1.0, 1.0, 1.0), 1),
        ((0.05, 0.1, 0.05), 5),
        ((0.1, 0.3, 0.3, 0.1), 1),
        ((0.1, 0.2, 0.1, 0.1), 2),
    ],
)
def test_sets_of_stages_on_a_card(fractions: tuple[float, ...], sets: int) -> None:
    """Of those that a model has."""
    stages = STAGES if len(fractions) == 4 else THREE
    values = dict(zip(stages, fractions, strict=True))
    assert parse_settings(ModelSettings, {"gpu_fractions": values}).gpu_fractions.sets_per_card(stages) == sets


def test_two_transformers_share_the_fraction_of_one() -> None:
    """So that a set still fits a card when nothing is said; and what is said holds."""
    assert Fractions().of(THREE) == {"encode": 0.2, "denoise": 0.6, "decode": 0.2}
    assert Fractions().of(STAGES) == {"encode": 0.2, "denoise": 0.3, "refine": 0.3, "decode": 0.2}
    assert Fractions(refine=0.4).of(STAGES) == {"encode": 0.2, "denoise": 0.6, "refine": 0.4, "decode": 0.2}
    assert Fractions(refine=0.4).of(THREE) == Fractions().of(THREE)
    assert Fractions().sets_per_card(STAGES) == 1


@pytest.mark.parametrize("offload", ["auto", False])
def test_lazy_load_needs_cpu_offload(offload: object) -> None:
    assert "lazy_load needs cpu_offload: true" in refused({"lazy_load": True, "cpu_offload": offload})
    assert parse_settings(EngineSettings, {"lazy_load": True, "cpu_offload": True}).lazy_load
    assert not parse_settings(EngineSettings, {"lazy_load": False, "cpu_offload": offload}).lazy_load


def test_lazy_load_alone_is_refused() -> None:
    assert "lazy_load needs cpu_offload" in refused({"lazy_load": True})


POLICIES: list[tuple[dict[str, Any], Policy]] = [
    ({}, "auto"),
    ({"offload_granularity": "model"}, "auto"),
    ({"cpu_offload": "auto", "offload_granularity": "phase"}, "auto"),
    ({"cpu_offload": False}, "whole"),
    ({"cpu_offload": False, "offload_granularity": "model"}, "whole"),
    ({"cpu_offload": True}, "streamed"),
    ({"cpu_offload": True, "offload_granularity": "model"}, "model"),
    ({"cpu_offload": True, "offload_granularity": "phase"}, "streamed"),
    ({"cpu_offload": True, "offload_granularity": "block"}, "streamed"),
    ({"cpu_offload": True, "lazy_load": True}, "streamed"),
    ({"cpu_offload": "true", "offload_granularity": "model"}, "model"),
    ({"cpu_offload": "false"}, "whole"),
]


@KINDS
@pytest.mark.parametrize(("values", "policy"), POLICIES, ids=str)
def test_policies(kind: Kind, values: dict[str, Any], policy: Policy) -> None:
    assert parse_settings(kind, values).policy == policy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "int8"),
        ("device", "tpu"),
        ("cpu_offload", "sometimes"),
        ("offload_granularity", "layer"),
        ("lazy_load", "maybe"),
        ("model", None),
        ("model", 7),
    ],
)
def test_a_value_that_is_not_understood_names_its_key(key: str, value: object) -> None:
    assert refused({key: value}).startswith(key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_replicas", 0),
        ("max_replicas", 1.5),
        ("max_queue", 0),
        ("depth_per_replica", 0),
        ("depth_per_replica", float("nan")),
        ("upscale_delay_seconds", -1),
        ("downscale_delay_seconds", float("nan")),
        ("request_timeout_seconds", 0),
        ("request_timeout_seconds", float("nan")),
        ("name", 7),
    ],
)
def test_a_value_of_the_application_out_of_bounds_names_its_key(key: str, value: object) -> None:
    assert refused({key: value}, ModelSettings).startswith(f"{key}: ")


@KINDS
def test_the_environment_overrides_model_and_budget(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTX2V_MODEL", "owner/other")
    monkeypatch.setenv("LIGHTX2V_GPU_BUDGET", "2GiB")
    for values in ({}, {"model": "owner/one", "gpu_budget": "1GiB"}):
        settings = parse_settings(kind, values)
        assert (settings.model, settings.gpu_budget) == ("owner/other", 2 << 30)


def test_an_empty_variable_is_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LIGHTX2V_MODEL", "LIGHTX2V_GPU_BUDGET"):
        monkeypatch.setenv(variable, "")
    settings = parse_settings(EngineSettings, {"model": "owner/one", "gpu_budget": 5})
    assert (settings.model, settings.gpu_budget) == ("owner/one", 5)


def test_a_bad_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTX2V_GPU_BUDGET", "much")
    assert refused({"gpu_budget": 5}).startswith("gpu_budget: 'much' is not a size")


def test_the_given_values_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTX2V_MODEL", "owner/other")
    values: dict[str, Any] = {"model": "owner/one"}
    parse_settings(EngineSettings, values)
    assert values == {"model": "owner/one"}


def test_with_nothing_set_the_bundled_model_serves() -> None:
    settings = parse_settings(ModelSettings, {})
    assert settings.model == str(BUNDLED_MODEL)
    assert (BUNDLED_MODEL / "model_index.json").is_file()
    assert settings.model_id == BUNDLED_MODEL.name


@pytest.mark.parametrize(
    ("values", "identity"),
    [
        ({"model": "black-forest-labs/FLUX.2-klein-9B"}, "FLUX.2-klein-9B"),
        ({"model": "/models/klein/"}, "klein"),
        ({"model": "."}, Path.cwd().name),
        ({"model": "../klein/."}, "klein"),
        ({"model": "~/.cache/hub/models--black-forest-labs--FLUX.2-klein-4B/snapshots/0a1b"}, "FLUX.2-klein-4B"),
        ({"model": "/models/klein", "name": "mine"}, "mine"),
    ],
)
def test_the_models_id(values: dict[str, Any], identity: str) -> None:
    assert parse_settings(ModelSettings, values).model_id == identity


@pytest.mark.parametrize(
    ("model", "hub_id"),
    [
        ("owner/FLUX.2-klein-9B", "owner/FLUX.2-klein-9B"),
        ("/cache/models--owner--klein/snapshots/0a1b", "owner/klein"),
        ("/cache/models--owner--klein/snapshots/0a1b/", "owner/klein"),
        *((folder, None) for folder in [".", "./klein", "../klein", "/models/klein", "klein", "a/b/klein"]),
    ],
)
def test_the_models_hub_id(model: str, hub_id: str | None) -> None:
    assert parse_settings(ModelSettings, {"model": model}).hub_id == hub_id


def test_settings_do_not_change() -> None:
    settings = parse_settings(ModelSettings, {})
    for key, value in (("model", "other"), ("gpu_budget", 1), ("max_queue", 1)):
        with pytest.raises(ValidationError):
            setattr(settings, key, value)
    with pytest.raises(ValidationError):
        settings.gpu_fractions.encode = 1.0


def described(text: str) -> dict[str, Any]:
    """The settings of a configuration, and those that it offers as comments."""
    return {key: yaml.safe_load(value) for key, value in re.findall(r"^      (?:# )?(\w+): (\S+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_configurations_validate_also_with_their_comments_switched_on(path: Path) -> None:
    text = path.read_text()
    (application,) = yaml.safe_load(text)["applications"]
    models = parse_application(application["args"]).models
    offered = described(text)
    assert offered.keys() > application["args"].keys() - {"models"}
    assert offered["gpu_budget"] == "24GiB"
    parse_application(offered)
    assert {settings.policy for settings in models} == {"auto"}


def test_each_model_is_set_over_what_holds_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTX2V_MODEL", "owner/other")
    entries = [{"model": "owner/one", "max_queue": 2}, {"model": "owner/two"}]
    one, two = parse_application({"models": entries, "max_queue": 5, "gpu_budget": "1GiB"}).models
    assert (one.model_id, one.max_queue, one.gpu_budget) == ("one", 2, 1 << 30)
    assert (two.model_id, two.max_queue, two.gpu_budget) == ("two", 5, 1 << 30)


@pytest.mark.parametrize("models", [[], {}, "owner/one", ["owner/one"], None])
def test_a_list_of_models_that_is_none_is_refused(models: object) -> None:
    with pytest.raises(InvalidSettings, match="models: write a list"):
        parse_application({"models": models})


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidSettings, match="two are called 'klein'"):
        parse_application({"models": [{"model": "one/klein"}, {"model": "two/klein"}]})


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"aliases": ["dall-e-3"]}, {"aliases": ["dall-e-3"]}),
        ({"aliases": ["b"]}, {"name": "b"}),
        ({"aliases": ["a"]}, {}),
    ],
)
def test_an_alias_is_one_models_alone(one: dict[str, Any], two: dict[str, Any]) -> None:
    models = [{"model": "owner/a"} | one, {"model": "owner/b"} | two]
    with pytest.raises(InvalidSettings, match="two are called"):
        parse_application({"models": models})
    with pytest.raises(InvalidSettings, match="aliases"):
        parse_application({"model": "owner/a", "aliases": [""]})


def test_what_is_of_the_application_and_not_of_a_model() -> None:
    server = {"allowed_hosts": ["gpu.lan"], "allowed_origins": ["https://gpu.lan"], "max_upload_bytes": "64MiB"}
    models = [{"model": "one/klein", "max_queue": 2}, {"model": "one/dev", "request_timeout_seconds": 900}]
    application = parse_application({"server": server, "models": models, "max_queue": 5})
    assert application.server.allowed_hosts == ("gpu.lan",)
    assert application.server.max_upload_bytes == 64 << 20
    assert (application.max_queue, application.request_timeout_seconds) == (7, 900)
    assert parse_application({"server": server}).server == application.server
    assert parse_application({}).server.allowed_hosts == ()


@pytest.mark.parametrize(
    ("server", "complaint"),
    [
        ({"allowed_host": ["gpu.lan"]}, "did you mean 'allowed_hosts'?"),
        ({"allowed_hosts": ["http://gpu.lan"]}, "'http://gpu.lan' is not a host's name"),
        ({"allowed_hosts": ["gpu.lan:8000"]}, "without scheme and port"),
        ({"allowed_origins": ["gpu.lan"]}, "write for example https://example.com"),
        ({"allowed_origins": ["https://gpu.lan/"]}, "is not an origin"),
        ({"allowed_origins": ["*"]}, "is not an origin"),
        ({"max_references": 0}, "server.max_references: "),
        ({"max_json_bytes": 10}, "server.max_json_bytes: "),
        ({"max_upload_bytes": "much"}, "server.max_upload_bytes: "),
        ("loopback", "server: "),
    ],
)
def test_server_settings_that_cannot_be(server: object, complaint: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_application({"server": server})
    assert str(caught.value).startswith("server")
    assert complaint in str(caught.value)


def test_the_example_of_loras() -> None:
    """Its lines lie deeper than `described` looks."""
    text = (ROOT / "configs/flux2.yaml").read_text()
    (example,) = re.findall(r"^      # (loras:\n(?:      #   .+\n)+)", text, re.MULTILINE)
    loras = yaml.safe_load(example.replace("      # ", ""))
    assert parse_settings(ModelSettings, loras).loras.keys() == {"oil", "sketch"}


@pytest.mark.parametrize(
    ("dtype", "cuda", "expected"),
    [
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("bfloat16", False, "bfloat16"),
        ("float16", True, "float16"),
    ],
)
def test_the_precision_is_what_the_device_is_good_at(dtype: str, cuda: bool, expected: str) -> None:
    assert parse_settings(EngineSettings, {"dtype": dtype}, {}).precision(cuda) == expected
