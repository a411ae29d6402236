"""The benchmark on a GPU, here on the cpu as a card: from its command line to the file that it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import figure
from benchmarks.gpu import Run, parse
from benchmarks.load.__main__ import measure
from benchmarks.load.__main__ import parse as parse_load
from benchmarks.server import ROOT, Server, serve
from benchmarks.together import Run as Together
from benchmarks.together import parse as parse_together
from lightx2v.weights.shared_memory import used_by
from tests.checkpoints.flux2 import write_klein


@pytest.mark.timeout(600)
def test_a_cap_that_suffices_and_one_that_does_not(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", str(checkpoint), "--budgets", "24MB,100KB"]
    command += ["--output", str(tmp_path), "--splits"]
    command += ["--requests", "2", "--references", "1", "--saturate", "2", "--size", "64x64", "--steps", "1"]
    command += ["--set", "device=cpu", "--set", "max_replicas=1", "--set", "dtype=float32"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=560)
    assert run.returncode == 0, run.stderr[-2000:]
    (file,) = tmp_path.glob("*.json")
    suffices, fails = json.loads(file.read_text())["caps"]
    assert [one["kind"] for one in suffices["series"]] == ["text", "1 references"]
    assert all(len(one["seconds"]) == 2 and one["bound_seconds"] > 0 for one in suffices["series"])
    assert suffices["within_budget"]
    assert 0 < suffices["peak_bytes"] <= 24_000_000
    assert suffices["saturated"]["per_second"] > 0
    assert "needs" in fails["error"], "the server's own reason"
    assert "| resident blocks |" in run.stdout
    assert run.stdout.count("| 0.02 GiB | text |") == 2, "at once, and in the table at the end"


@pytest.fixture(scope="module")
def bundled() -> Iterator[Server]:
    """The small model under less than it needs to be whole, so that its bytes move."""
    with serve({"device": "cpu", "max_replicas": 1, "gpu_budget": "60MB", "conditioning_cache": 0}) as server:
        yield server


@pytest.mark.timeout(600)
def test_the_load_command_says_what_a_server_does(
    bundled: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mix.yaml").write_text("- {size: 64x64, steps: 1, guidance: 1}\n- {size: 96x64, steps: 2, weight: 2}\n")
    options = ["--clients", "2", "--requests", "8", "--share", "0.8", "--seconds", "4", "--mix", f"{tmp_path}/mix.yaml"]
    figures = measure(bundled.url, parse_load([bundled.url, *options, "--check", "3", "--deadline", "60"]), [])
    closed, arrived = figures["closed"], figures["open"]
    assert (closed["pictures"], closed["failures"], closed["after_deadline"]) == (8, {}, 0)
    assert closed["per_second"] > 0
    assert closed["h2d_bytes_per_picture"] > 0
    assert len(closed["seconds_by_ask"]) == 2
    assert arrived["offered_per_second"] == pytest.approx(0.8 * closed["per_second"], abs=0.25)
    assert arrived["pictures"] == arrived["requests"] > 0
    assert (figures["bits"]["compared"], figures["bits"]["differ"]) == (3, 0)
    assert "closed: {" in capsys.readouterr().out


@pytest.mark.timeout(600)
def test_each_cap_with_and_without_a_setting(checkpoint: Path, tmp_path: Path) -> None:
    """Two models behind one endpoint; then the same requests again, of a server with another setting."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.symlink_to(checkpoint)
    arguments = [*map(str, folders), "--budgets", "7MB", "--without", "max_queue=9", "--output", str(tmp_path)]
    arguments += ["--clients", "2", "--requests", "8", "--alone", "2", "--check", "2", "--share", "0.8"]
    arguments += ["--seconds", "4", "--size", "64x64", "--steps", "1"]
    arguments += ["--set", "device=cpu", "--set", "max_replicas=1", "--set", "dtype=float32"]
    run = Together(parse_together(arguments))
    run.measure()
    (file,) = (file for file in tmp_path.glob("*.json") if "compute" not in file.name)
    first, second = json.loads(file.read_text())["servers"]
    assert [one["model"] for one in first["alone"]["series"]] == ["one", "two"]
    assert first["bits"] == {"compared": 2, "differ": 0, "numbers": []}
    assert first["open"]["md1_p95_seconds"] > 0
    assert first["memory"]["within_budget"]
    assert second["changed"] == {"max_queue": 9}
    assert (second["closed"]["compared_with_servers"], second["closed"]["differ_from_servers"]) == (8, 0)
    assert set(figure.points([run.result])) == {figure.OURS, figure.WITHOUT}
    again = parse_together([*arguments, *(part for name in ("one", "two") for part in computed(tmp_path, name))])
    assert Together(again).computations() == list(run.result["compute"].values())


def computed(folder: Path, name: str) -> tuple[str, str]:
    (file,) = folder.glob(f"*compute-{name}.json")
    return "--compute", str(file)


def test_the_host_copies_outlive_the_process_that_measured(tmp_path: Path) -> None:
    checkpoint = write_klein(tmp_path / "klein")  # the shared one's copies may be in this process already
    arguments = [str(checkpoint), "--output", str(tmp_path), "--size", "64x64", "--steps", "1", "--set", "device=cpu"]
    run = Run(parse(arguments))
    before = descriptors()
    run.computation()
    assert len(descriptors() - before) == 3, "one for each stage"


def descriptors() -> set[str]:
    """The names of the host copies that this process has."""
    found = used_by(os.getpid())
    for descriptor in found.values():
        os.close(descriptor)
    return set(found)
