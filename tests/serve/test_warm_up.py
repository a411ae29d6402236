"""What is compiled when it is first used has been used before the server says that it is ready."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.server import serve
from tests.serve.doubles import CALLS


def test_health_waits_for_the_first_pictures(checkpoint: Path, tmp_path: Path) -> None:
    """One of text and one with a reference: each takes every stage once, the reference's latents one more."""
    calls = tmp_path / "calls"
    arguments = {"model": str(checkpoint), "compile": True, "conditioning_cache": 0}
    with serve(arguments, "tests.serve.doubles:traced", {CALLS: str(calls)}) as server:
        assert Counter(calls.read_text().split()) == {"encode": 2, "decode": 3, "denoise": 2}
        assert "warm-up failed" not in server.log
        assert server.generate().status_code == 200
