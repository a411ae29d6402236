"""What is compiled when it is first used has been used before the server says that it is ready."""

from __future__ import annotations

from pathlib import Path

from benchmarks.server import serve


def test_health_waits_for_the_first_pictures(checkpoint: Path) -> None:
    """One of text and one with a reference: each takes every stage's lease once, the encoder's latents one more."""
    arguments = {"model": str(checkpoint), "compile": True, "conditioning_cache": 0}
    with serve(arguments, import_path="tests.serve.doubles:traced") as server:
        assert server.card()["grants_total"] == 7
        assert "rehearsal failed" not in server.log
        assert server.generate().status_code == 200
