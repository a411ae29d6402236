"""The benchmark on a GPU, here on the cpu as a card: from its command line to the file that it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import Run, parse
from benchmarks.server import ROOT
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
