"""Starts a real `serve run` in a process of its own, as a user would, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from lightx2v.config import ENVIRONMENT

ROOT = Path(__file__).parent.parent
START_SECONDS = 240.0
POLL_SECONDS = 0.1


def under(budget: int, model: Path) -> dict[str, Any]:
    """Arguments under which every request needs all stages, also for a prompt that comes again."""
    return {"model": str(model), "dtype": "float32", "conditioning_cache": 0, "gpu_budget": budget}


class Server:
    """One application on a local cluster of its own."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process, self.url, self._log = process, url, log
        self.http = httpx.Client(base_url=url, timeout=120)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def generate(self, prompt: str = "a red circle", **fields: Any) -> httpx.Response:
        return self.http.post("/v1/images/generations", json={"prompt": prompt, **fields})

    def edit(self, images: list[bytes], prompt: str = "make it blue", **fields: Any) -> httpx.Response:
        files = [("image[]", (f"{index}.png", data, "image/png")) for index, data in enumerate(images)]
        return self.http.post("/v1/images/edits", data={"prompt": prompt, **fields}, files=files)

    def card(self) -> dict[str, Any]:
        """The only card's entry of GET /v1/residency."""
        (gpu,) = self.http.get("/v1/residency").json()["gpus"]
        return dict(gpu)

    def rest(self) -> dict[str, Any]:
        """The same when no lease is held and none asked for: a request is answered before its last lease is back."""
        card: dict[str, Any] = self.wait_until(self._resting, 30, "rest")
        return card

    def _resting(self) -> dict[str, Any] | None:
        card = self.card()
        return None if card["waiting"] or any(stage["running"] for stage in card["stages"]) else card

    def stages(self, name: str) -> list[dict[str, Any]]:
        return [stage for stage in self.card()["stages"] if stage["stage"] == name]

    def wait_until(self, condition: Any, seconds: float = 60.0, what: str = "the condition") -> Any:
        """Polls, because what is waited for happens in other processes."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"serve exited with {self.process.returncode}:\n{self.log[-4000:]}")
            with contextlib.suppress(httpx.TransportError, ValueError, KeyError):
                if result := condition():
                    return result
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"{what} did not come about within {seconds} s:\n{self.log[-4000:]}")

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        self.wait_until(lambda: self.http.get("/health").status_code == 200, seconds, "readiness")


@contextlib.contextmanager
def serve(
    arguments: Mapping[str, Any] | None = None,
    import_path: str = "deployments.app:build",
    environment: Mapping[str, str] | None = None,
    ready: bool = True,
    log: Path | None = None,
) -> Iterator[Server]:
    """Runs configs/flux2.yaml with other `args`, on a free port, until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="s"))
    port = free_port()
    log = log or folder / "log"
    (folder / "config.yaml").write_text(configuration(port, dict(arguments or {}), import_path))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.serve.scripts", "run", str(folder / "config.yaml")],
            cwd=ROOT,
            env=isolated(folder, environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        if ready:
            server.wait_ready()
        yield server
    finally:
        server.http.close()
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def configuration(port: int, arguments: dict[str, Any], import_path: str) -> str:
    config = yaml.safe_load((ROOT / "configs" / "flux2.yaml").read_text())
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["import_path"] = import_path
    application["args"] |= arguments
    return yaml.safe_dump(config)


def isolated(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    own = {
        "RAY_TMPDIR": str(folder),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    inherited = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT.values()}
    return {**inherited, **own, **environment}


def stop(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C does; then whatever is left of its session."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
