"""The figures of a card under many clients: the table and the figure say what the JSON says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import figure, turns
from benchmarks.ask import Ask
from benchmarks.card_load import CardLoad
from benchmarks.computation import read_computation
from benchmarks.load.answer import Answer
from benchmarks.load.mix import Call
from benchmarks.load.table import HEAD, table
from benchmarks.together import parse
from lightx2v.types import Size

ROOT = Path(__file__).parents[2]
GIB = 2**30
CLOSED: dict[str, Any] = {
    "clients": 8,
    "per_second": 1.714,
    "of_compute": 0.956,
    "compute_per_second": 1.792,
    "h2d_bytes_per_picture": 9.25e9,
    "seconds": {"p50": 4.4, "p95": 5.1, "p99": 5.3},
    "cohorts": {"klein-9b denoise": {"mean": 3.42, "most": 5}},
    "compared_with_servers": 48,
    "differ_from_servers": 0,
}
SERVER: dict[str, Any] = {
    "budget_bytes": 16 * GIB,
    "changed": {},
    "alone": {"series": [{"p50_seconds": 0.784, "bound_seconds": 0.645}]},
    "closed": CLOSED,
    "bits": {"compared": 8, "differ": 0},
    "open": {"share": 0.8, "seconds": {"p95": 2.352}, "md1_p95_seconds": 4.371},
    "memory": {"peak_bytes": 15 * GIB, "within_budget": True},
}
WITHOUT = {"budget_bytes": 12 * GIB, "changed": {"max_cohort": 1}, "closed": CLOSED | {"per_second": 0.911}}
FAILED = {"budget_bytes": GIB, "changed": {}, "error": "too little | of it\nand more"}
RESULT: dict[str, Any] = {
    "servers": [SERVER, WITHOUT, FAILED, SERVER | {"budget_bytes": 8 * GIB}],
    "baselines": [
        {"how": "group-offload", "budget_bytes": 16 * GIB, "seconds": [4.0, 3.9, 4.1]},
        {"how": "group-offload", "budget_bytes": 8 * GIB, "error": "out of memory"},
    ],
}


def test_a_row_for_each_server() -> None:
    whole, part, failed, reason = table(RESULT["servers"][:3]).splitlines()[2:]
    assert whole == (
        "| 16.00 GiB |  | 0.784 | 0.645 | 1.71 with 8 | 96% | 9.25 | 4.40, 5.10 | denoise 3.4 (most 5) | 2.35 at 80% | "
        "3.0 | 4.37 | 0 of 8, 0 of 48 beside other servers | 15.00 |"
    )
    assert part.startswith("| 12.00 GiB | max_cohort=1 |  |  | 0.91 with 8 |")
    assert failed.startswith("| 1.00 GiB |  |  |")
    assert reason.startswith("| 1.00 GiB | too little / of it |")
    assert {line.count("|") for line in (whole, part, failed, reason)} == {len(HEAD) + 1}


def test_the_points_of_the_figure() -> None:
    assert figure.points([RESULT]) == {
        figure.OURS: [(8, 1.714), (16, 1.714)],
        figure.WITHOUT: [(12, 0.911)],
        figure.OFFLOAD: [(16, 0.25)],
    }


def test_the_numbers_in_the_figure_are_those_of_the_results(tmp_path: Path) -> None:
    file = tmp_path / "memory.svg"
    figure.draw([RESULT], ["a.json"], file)
    assert numbers_in(file) == ["0.25", "0.91", "1.71", "1.71", "1.79"]
    assert sources_of(file) == ["a.json"]
    again = tmp_path / "again.svg"
    figure.draw([RESULT], ["a.json"], again)
    assert file.read_text() == again.read_text()


def test_the_figures_in_docs_are_of_the_results_that_they_name() -> None:
    for file in (ROOT / "docs").glob("*.svg"):
        results = [json.loads((ROOT / "benchmarks" / "results" / name).read_text()) for name in sources_of(file)]
        rates = [point.per_second for line in figure.points(results).values() for point in line]
        rates += filter(None, [figure.most(results)])
        assert numbers_in(file) == sorted(map(figure.label, rates)), file


def numbers_in(file: Path) -> list[str]:
    """The rates that stand beside the points and the bound."""
    return sorted(re.findall(r'<g id="rate-[^"]*">.*?<text [^>]*>([^<]*)</text>', file.read_text(), re.DOTALL))


def sources_of(file: Path) -> list[str]:
    (found,) = re.findall(rf">{figure.SOURCES}([^<]*)<", file.read_text())
    return str(found).split()


def test_arguments() -> None:
    options = parse(["/fast/klein", "--budgets", "24GiB,8GiB", "--without", "max_queue=1", "--share", "0.8"])
    assert options.budgets == [24 * GIB, 8 * GIB]
    assert options.without == [("max_queue", 1)]
    with pytest.raises(SystemExit):
        parse(["/fast/klein", "--without", "cohorts=off"])


def test_a_computation_of_an_earlier_run(tmp_path: Path) -> None:
    """Files from before requests had a model's name are read too."""
    file, ask = tmp_path / "earlier.json", {"size": {"width": 64, "height": 64}, "steps": None}
    file.write_text(json.dumps({"settings": {"model": "a"}, "asks": [ask], "compute": {"gpu": "card"}}))
    assert read_computation(file, {"model": "a"}, [Ask(Size(64, 64))]) == {"gpu": "card"}
    for settings, asked in (({"model": "b"}, Ask(Size(64, 64))), ({"model": "a"}, Ask(Size(64, 64), 4))):
        with pytest.raises(RuntimeError, match="is of"):
            read_computation(file, settings, [asked])


def test_pictures_are_compared_over_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.card_load.open_probe", lambda _: None)
    server, ask, digests = SimpleNamespace(card=lambda: {"id": "cpu"}), Ask(Size(64, 64)), dict[int, str]()

    def compared(made: str) -> dict[str, int]:
        load = CardLoad(server, GIB, [ask], [{}], digests, parts=None)  # type: ignore[arg-type]
        return load._compared([Answer(Call(ask, n), 0, 0, 1, 200, digest=digest) for n, digest in enumerate(made)])

    assert compared("abc") == {"compared_with_servers": 0, "differ_from_servers": 0}
    assert compared("abcd") == {"compared_with_servers": 3, "differ_from_servers": 0}
    assert compared("axyd") == {"compared_with_servers": 4, "differ_from_servers": 2}


def test_the_budget_holds_one_of_two_models(checkpoint: Path) -> None:
    settings = {"device": "cpu", "dtype": "float32", "max_replicas": 1}
    ask = Ask(Size(64, 64), steps=1, model="one")
    budget = turns.budget_for_one([checkpoint, checkpoint], ask, settings)
    assert budget == turns.budget_for_one([checkpoint], ask, settings)
    assert 1_000_000 < budget < 2 * 6_000_000
