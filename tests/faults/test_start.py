"""A server that cannot start says what is wrong and where, and is never ready."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.server import serve


def test_a_truncated_weight_file_is_named_at_the_start(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = next((broken / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    with serve({"model": str(broken), "dtype": "float32"}, ready=False) as server:
        server.wait_until(lambda: "download it again" in server.log, 90, "the complaint")
        assert f"{weights}: not a complete safetensors file" in server.log
        server.wait_until(lambda: server.http.get("/health").json()["status"] == "failed", 90, "the verdict")
        health = server.http.get("/health")
        assert health.status_code == 503
        assert health.json()["reason"].startswith(
            f"denoise: lightx2v.errors.InvalidCheckpoint: {weights}: not a complete"
        )


def test_an_unknown_setting_is_named_with_its_neighbour(checkpoint: Path) -> None:
    with serve({"model": str(checkpoint), "gpu_bugdet": "1GiB"}, ready=False) as server:
        server.wait_until(lambda: "did you mean 'gpu_budget'?" in server.log, 60, "the complaint")
