"""`python -m lightx2v fit`: the plan by hand for a tiny checkpoint, and the measured sizes and seconds of klein-9B."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.checkpoint import flux2
from benchmarks.checkpoint import weights as random_weights
from benchmarks.report import sizes
from lightx2v.__main__ import main
from lightx2v.checkpoint import read_spec
from lightx2v.commands.cards import CARDS, Card
from lightx2v.commands.forecast import CONTEXT, SERVING_SECONDS, Forecast, Part, forecast
from lightx2v.commands.headers import write_header
from lightx2v.config import ENVIRONMENT, EngineSettings
from lightx2v.errors import InvalidSettings, OutOfMemory
from lightx2v.models.request import planning_request
from lightx2v.pipeline import Pipeline
from lightx2v.residency.plan import Share, StageSize
from lightx2v.residency.width import Cohort
from lightx2v.weights.device import PAGE

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SHOWN = ("RTX 3090", "RTX 4090", "H200")
H200 = next(card for card in CARDS if card.name == "H200")


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLUX.2 klein 9B in its published shapes: headers alone, in sparse files."""
    folder = tmp_path_factory.mktemp("klein-9b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_weights, "_write_file", write_holes)
        flux2.write_checkpoint(folder, flux2.SHAPES["klein-9b"])
    return folder


def write_holes(path: Path, states: random_weights.States) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name, meta in states.items():
        nbytes = random_weights._nbytes(meta)
        dtype = "BF16" if meta.is_floating_point() else "I64"
        header[name] = {"dtype": dtype, "shape": list(meta.shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    write_header(path, header)


def predicted(model: Path, card: Card = H200, **settings: Any) -> Forecast:
    chosen = EngineSettings(model=str(model), **settings)
    return forecast(chosen, planning_request(read_spec(chosen)), card)


def measured() -> dict[str, Any]:
    """klein-9B on an H200, through HTTP."""
    run: dict[str, Any] = json.loads((RESULTS / "2026-11-28-h200-klein-9b.json").read_text())
    return run


def blank(size: StageSize) -> StageSize:
    """What does not follow from the code of that day, or from measured rates."""
    return replace(size, activation_bytes=0, overlap_bytes=0, slot_bytes=0, member_bytes=0)


def test_sizes_are_those_that_a_gpu_reported(klein: Path) -> None:
    """All but what follows from the rates, which that process measured itself."""
    made = [part.size for part in predicted(klein).parts]
    expected = sizes(measured()["compute"]["kinds"]["text"])
    for size, there in zip(made, expected, strict=True):
        assert blank(size) == blank(there)
        assert size.activation_bytes == pytest.approx(there.activation_bytes, rel=0.05), "25 widths then"
        assert size.overlap_bytes == pytest.approx(there.overlap_bytes, rel=0.1)
        if size.planned_passes > 1:  # since that run, two blocks at a time pass where each is used once
            assert size.slot_bytes == pytest.approx(there.slot_bytes, rel=0.05)


@pytest.mark.parametrize("cap", range(4))
def test_seconds_are_near_the_measured_ones(klein: Path, cap: int) -> None:
    run = measured()["caps"][cap]
    (text,) = (one for one in run["series"] if one["kind"] == "text")
    made = predicted(klein, gpu_budget=run["budget_bytes"])
    assert made.seconds == pytest.approx(text["p50_seconds"], rel=0.1)
    assert made.moved == pytest.approx(text["h2d_bytes"], rel=0.1, abs=1e9)


def test_seconds_in_fp8_are_near_the_measured_ones(klein: Path) -> None:
    run = json.loads((RESULTS / "2026-11-28-h200-klein-9b-fp8.json").read_text())["caps"][0]
    made = predicted(klein, gpu_budget=run["budget_bytes"], fp8=True)
    assert made.seconds == pytest.approx(run["series"][0]["p50_seconds"], rel=0.1)


def test_a_tiny_plan_by_hand(distilled: Path) -> None:
    """Every unit of the tiny model is one page. With one page less than all, the first block to stream is one of the
    part that uses its weights once."""
    whole = predicted(distilled)
    pages = [[nbytes // PAGE for nbytes in (part.size.rest, *part.size.units)] for part in whole.parts]
    assert all(page in (0, 1) for stage in pages for page in stage)
    weights = PAGE * sum(map(sum, pages))
    assert [part.share.resident for part in whole.parts] == [PAGE * sum(stage) for stage in pages]
    assert (whole.moved, sum(part.size.reachable for part in whole.parts)) == (0, weights)

    largest = max(part.size.activation_bytes for part in whole.parts)
    budget = 3 * CONTEXT + weights + largest - 1
    tight = predicted(distilled, gpu_budget=budget)
    kept = {part.size.stage: part.share.resident for part in tight.parts}
    assert sum(kept.values()) == weights - PAGE
    assert kept["denoise"] == PAGE * sum(pages[1]), "it would move its block in every step"
    assert tight.moved == PAGE
    assert tight.seconds == pytest.approx(whole.seconds + PAGE / H200.link)


@pytest.mark.parametrize("gib", [8, 12, 24])
def test_the_most_a_second_is_near_what_the_arithmetic_allows(klein: Path, gib: int) -> None:
    """Those that run together share what streams. Alone, a request waits for it."""
    made = predicted(klein, gpu_budget=gib << 30)
    arithmetic = 1 / sum(part.seconds for part in made.parts)
    assert 0.9 * arithmetic <= made.per_second <= arithmetic
    if gib < 24:
        assert made.per_second > 1.2 / (made.seconds - SERVING_SECONDS)


def test_the_most_a_second_by_hand() -> None:
    """A part of 3 s of which three run together: of 90 bytes a use, 60 hide behind computation, and 30 do not."""
    size = StageSize("denoise", (90,), 0, 0, 90, 2, overlap_bytes=20)
    share = Share("denoise", 0, 0, 3)
    made = Forecast((Part(size, Cohort(replace(share, width=1), share), 0, 3.0),), link=10.0)
    assert made.per_second == pytest.approx(1 / (3.0 + 2 * 30 / 10 / 3))
    assert made.seconds == pytest.approx(SERVING_SECONDS + 3.0 + 2 * 70 / 10)


def test_sizes_are_the_pipelines(distilled: Path, pipeline: Pipeline) -> None:
    """Those that a process which has read the weights plans with, where an allocation costs its bytes."""
    settings = EngineSettings(model=str(distilled), dtype="float32")
    request = planning_request(read_spec(settings))
    planned = [part.size for part in forecast(settings, request, H200).parts]
    for size, real in zip(planned, pipeline.sizes(request), strict=True):
        assert size.units == tuple(-(-nbytes // PAGE) * PAGE for nbytes in real.units)
        assert (size.stage, size.planned_passes) == (real.stage, real.planned_passes)


def test_host_memory(distilled: Path) -> None:
    in_memory = predicted(distilled).host_bytes
    files = sum(file.stat().st_size for file in distilled.rglob("*.safetensors"))
    assert 0 < in_memory < files, "in bf16, without what no request reads"
    on_disk = predicted(distilled, cpu_offload=True, lazy_load=True).host_bytes
    assert 0 < on_disk < in_memory / 2, "the embedding of the prompts alone"


def test_what_does_not_fit(distilled: Path) -> None:
    with pytest.raises(OutOfMemory, match="the budget is"):
        predicted(distilled, gpu_budget=3 * CONTEXT + PAGE)
    ampere = replace(H200, capability=(8, 6))
    with pytest.raises(InvalidSettings, match="fp8"):
        predicted(distilled, ampere, fp8=True)


def test_a_family_of_each_kind(family: Path) -> None:
    made = predicted(family)
    assert made.seconds > 0
    assert len(made.parts) in (3, 4)
    assert not any(part.share.resident != part.size.reachable for part in made.parts)


@pytest.fixture
def fit(distilled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Exit status, output and errors of the command on the tiny model."""
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("lightx2v.commands.fit.CARDS", [card for card in CARDS if card.name in SHOWN])

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["fit", str(distilled), *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_table(fit: Callable[..., Any], distilled: Path) -> None:
    status, out, err = fit("--gpu", "24GiB", "--host", "8GiB", "--size", "64x32", "--steps", "3")
    assert (status, err) == (0, "")
    assert "64x32, 3 steps, guidance 1" in out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert lines["denoise"].split()[-1] == "3"
    assert "encode all, denoise all, decode all" in lines["RTX 4090"]
    assert "23.64 GiB" in lines["RTX 4090"]
    assert "24.00 GiB" in lines["H200"]
    assert f"{predicted(distilled).seconds:.2f}" in lines["H200"]
    assert "8.00 GiB are enough" in out


def test_what_is_too_much(fit: Callable[..., Any]) -> None:
    status, out, _ = fit("--host", "1MiB")
    assert status == 1
    assert "0.00 GiB are not enough" in out
    assert "--lazy-load" in out
    status, out, _ = fit("--gpu", "1GiB")
    assert status == 1
    assert "3 CUDA processes alone take" in out
    status, out, _ = fit("--fp8", "--gpu", "8GiB")
    assert status == 0
    assert "no products in fp8" in next(line for line in out.splitlines() if line.startswith("RTX 3090"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "1000"], "must be WIDTHxHEIGHT"),
        (["--size", "65x64"], "multiple"),
        (["--gpu", "much"], "is not a size"),
        (["--host", "much"], "is not a size"),
        (["--references", "99"], "at most 8"),
    ],
)
def test_arguments_that_cannot_be(fit: Callable[..., Any], arguments: list[str], message: str) -> None:
    status, out, err = fit(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err


def test_no_weight_is_read(distilled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("lightx2v.weights.read._pread", refuse)
    assert predicted(distilled).seconds > 0
    assert not torch.cuda.is_initialized()
