"""What the benchmark on a GPU does without one: its arguments, its figures, its table."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compute, splits
from benchmarks.ask import Ask
from benchmarks.gpu import parse
from benchmarks.gpu_memory import Watch, contexts
from benchmarks.pictures import noise
from benchmarks.report import HEAD, sizes, summarise, summarise_rate, table
from benchmarks.series import Series
from lightx2v.residency.plan import StageSize
from lightx2v.types import Size

GIB = 2**30
SIZES = (
    StageSize("encode", (GIB,) * 2, 0, 0, GIB, 1),
    StageSize("denoise", (GIB,) * 4, 0, GIB, GIB, 4),
    StageSize("decode", (), GIB, 0, 0, 1),
)
KIND = {"seconds": {"encode": 0.1, "denoise": 0.8, "decode": 0.1}, "sizes": [asdict(size) for size in SIZES]}
COMPUTE: dict[str, Any] = {"kinds": {"text": KIND}, "link_bytes_per_second": 10.0 * GIB}
SERIES = Series("text", 9.0, "0f", (1.0, 1.25, 1.5), 2e9, 0.0)


def test_arguments() -> None:
    options = parse(
        ["/fast/klein", "--budgets", "31.35GiB,12GiB", "--set", "fp8=true", "--set", "dtype=float32", "--size", "64x48"]
    )
    assert options.budgets == [int(31.35 * GIB), 12 * GIB]
    assert dict(options.set) == {"fp8": True, "dtype": "float32"}
    assert options.size == Size(64, 48)
    assert (options.steps, options.guidance, options.references) == (None, None, 0)


@pytest.mark.parametrize(
    "wrong",
    [["--set", "fp8"], ["--set", "weights=fp8"], ["--set", "fp8=perhaps"], ["--budgets", "much"], ["--size", "big"]],
)
def test_arguments_that_are_none(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["/fast/klein", *wrong])
    assert f"argument {wrong[0]}: " in capsys.readouterr().err


def test_a_grant_for_some_blocks_has_the_ring_of_the_others() -> None:
    assert splits.counts(32) == [32, 28, 24, 20, 16, 12, 8, 4, 0]
    all_of_it, half = (splits.grant_of(SIZES[1], blocks) for blocks in (4, 2))
    assert (all_of_it.weights, all_of_it.extra_bytes) == (4 * GIB, GIB)
    assert (half.weights, half.extra_bytes, half.keep) == (2 * GIB, 2 * GIB, 2 * GIB)


def test_sizes_come_back_from_json() -> None:
    assert sizes(KIND) == SIZES


def test_figures_beside_their_bound() -> None:
    """Two of seven GiB have no room in six less the workspace of one; they hide."""
    figures = summarise(SERIES, COMPUTE, 6 * GIB)
    assert figures["p50_seconds"] == 1.25
    assert figures["p95_seconds"] == pytest.approx(1.475)
    assert figures["bound_seconds"] == pytest.approx(1.0)
    assert figures["p50_over_bound"] == pytest.approx(1.25)


def test_rate_beside_its_bound() -> None:
    figures = summarise_rate(0.9, 6, COMPUTE, 6 * GIB)
    assert figures["of_compute"] == pytest.approx(0.9)
    assert figures["bound_per_second"] == pytest.approx(1.0)


def test_the_table() -> None:
    cap: dict[str, Any] = {"budget_bytes": 16 * GIB, "peak_bytes": 15 * GIB, "within_budget": True}
    cap |= {"series": [summarise(SERIES, COMPUTE, 6 * GIB)], "saturated": summarise_rate(0.9, 6, COMPUTE, 6 * GIB)}
    failed = {"budget_bytes": GIB, "error": "too little | of it\nand more"}
    baseline = {"how": "pinned-swap", "budget_bytes": 16 * GIB, "seconds": [1.0, 3.0, 2.0], "peak_bytes": 9 * GIB}
    lines = table({"caps": [cap, failed], "baselines": [baseline, failed | {"how": "group-offload"}]}).splitlines()
    assert lines[2] == (
        "| 16.00 GiB | text | 9.00 | 1.250 | 1.475 | 1.000 | 1.25 | 2.00 in, 0.00 out | 15.00 | 0.90 with 6, 90% |"
    )
    assert lines[3].startswith("| 1.00 GiB | too little / of it | ")
    assert lines[4].startswith("| 16.00 GiB | pinned-swap |  | 2.000 |")
    assert lines[5].startswith("| 1.00 GiB | group-offload: too little")
    assert {line.count("|") for line in lines} == {len(HEAD) + 1}
    over = table({"caps": [cap | {"within_budget": False}], "baselines": []})
    assert "15.00 (over)" in over


def test_contexts_are_what_the_driver_sees_beside_weights() -> None:
    stages = [{"pid": pid, "context_bytes": 10, "resident_bytes": 100} for pid in (1, 2, 3)]
    assert contexts({"stages": stages}, {1: 107, 2: 150}) == 7 + 10 + 10


class Probe:
    """A card on which a process grows, until the driver fails."""

    def __init__(self) -> None:
        self.answers = iter([{1: 5, 2: 1}, {1: 7, 2: 2}, {1: 1}])
        self.asked = threading.Event()

    def total(self) -> int:
        return 10

    def used(self) -> dict[int, int]:
        answer = next(self.answers, None)
        if answer is None:
            self.asked.set()
            raise OSError("the driver is gone")
        return answer


def test_the_driver_is_watched_and_its_failure_is_not_lost() -> None:
    probe = Probe()
    watch = Watch(probe)
    with pytest.raises(OSError, match="gone"), watch:
        assert probe.asked.wait(30)
    assert watch.peak == 9


def test_the_same_is_asked_of_both(checkpoint: Path) -> None:
    from lightx2v.checkpoint import read_spec
    from lightx2v.config import EngineSettings

    spec = read_spec(EngineSettings(model=str(checkpoint), device="cpu"))
    ask = Ask(Size(64, 64), steps=2, references=2)
    request = ask.request(spec, 7, ask.pictures(spec))
    assert (request.steps, request.seed, request.references) == (2, 7, (Size(64, 64),) * 2)
    assert request.guidance == spec.guidance
    assert request.prompt != ask.request(spec, 8, ()).prompt
    assert (ask.pictures(spec)[0].fitted.pixels == noise(Size(64, 64), 0).pixels).all()


def test_computation_is_measured_where_everything_stays(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "TIMES", 1)
    monkeypatch.setattr(compute, "WARMUP", 1)
    monkeypatch.setattr(compute, "LINK_BYTES", 1 << 20)
    asks = f'{{"settings": {{"model": "{checkpoint}", "device": "cpu", "dtype": "float32", "max_replicas": 1}}, '
    asks += '"asks": [{"size": {"width": 64, "height": 64}, "steps": 1}]}'
    start = time.perf_counter()
    measured = compute.measure(*compute.parse(asks))
    whole = time.perf_counter() - start
    assert list(measured["kinds"]) == ["text"]
    text = measured["kinds"]["text"]
    assert set(text["seconds"]) == {"encode", "denoise", "decode"}
    assert 0 < sum(text["seconds"].values()) < text["pipeline_seconds"] < whole
    assert summarise(SERIES, measured, 1 << 30)["bound_seconds"] == pytest.approx(sum(text["seconds"].values()))
    with pytest.raises(RuntimeError, match="fits"):
        compute.measure(*compute.parse(asks.replace('"max_replicas": 1', '"gpu_budget": "6MB"')))
