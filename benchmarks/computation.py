"""A model's computation, measured in a process of its own, or read from the file of an earlier run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.ask import Ask
from benchmarks.report import splits_table
from benchmarks.server import ROOT
from deployments.card.host_copies import HostCopies


def measure_computation(
    settings: Mapping[str, Any], asks: Sequence[Ask], host_copies: HostCopies, splits: bool = False
) -> dict[str, Any]:
    """What `benchmarks.compute` prints. None of its memory is on the card afterwards; `host_copies` keeps its host
    copies. Raises RuntimeError if it failed."""
    asked = {"settings": settings, "asks": [asdict(ask) for ask in asks], "splits": splits}
    command = [sys.executable, "-m", "benchmarks.compute", json.dumps(asked)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        host_copies.hold(process.pid)
        process.stdin.close()
    if not line:
        raise RuntimeError("the computation could not be measured; the reason is above")
    compute: dict[str, Any] = json.loads(line)
    _print(compute)
    return compute


def read_computation(file: Path, settings: Mapping[str, Any], asks: Sequence[Ask]) -> dict[str, Any]:
    """That of an earlier run of `benchmarks.gpu` with the same settings. Raises RuntimeError for one of something
    else."""
    earlier: dict[str, Any] = json.loads(file.read_text())
    measured = [Ask.read(ask) for ask in earlier["asks"]]
    if earlier["settings"] != settings or any(ask not in measured for ask in asks):
        raise RuntimeError(f"{file} is of {earlier['settings']}, {earlier['asks']}")
    compute: dict[str, Any] = earlier["compute"]
    return compute


def _print(compute: Mapping[str, Any]) -> None:
    print(json.dumps({key: value for key, value in compute.items() if key not in ("kinds", "splits")}), flush=True)
    if compute["splits"]:
        print(splits_table(compute["splits"]), flush=True)
    for kind, figures in compute["kinds"].items():
        print(kind, json.dumps(figures["seconds"]), f"{figures['pipeline_seconds']:.3f} s in one process", flush=True)
