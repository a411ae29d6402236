"""A hub on this machine with one repository, for the client that asks for its headers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves the files under `folder` as those of `repository`, and counts the bytes of weight files that it sends."""

    def __init__(self, repository: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository, self.folder, self.weight_bytes = repository, folder, 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        return None

    def _answer(self, body: bool) -> None:
        path, repository = self.path.partition("?")[0], self.server.repository
        if path.startswith(f"/api/models/{repository}/tree/"):
            self._send_json([{"type": "file", "oid": "0", **entry} for entry in self._entries("path")], body)
        elif path.startswith(f"/api/models/{repository}"):
            self._send_json({"id": repository, "sha": COMMIT, "siblings": self._entries("rfilename")}, body)
        elif path.startswith(f"/{repository}/resolve/"):
            self._send_file(self.server.folder / path.split("/", 5)[5], body)
        else:
            self.send_error(404)

    def _entries(self, key: str) -> list[dict[str, Any]]:
        folder = self.server.folder
        return [{key: str(path.relative_to(folder)), "size": path.stat().st_size} for path in self.server.files()]

    def _send_json(self, values: Any, body: bool) -> None:
        self._send(200, json.dumps(values).encode(), body, {"Content-Type": "application/json"})

    def _send_file(self, file: Path, body: bool) -> None:
        if not file.is_file():
            self.send_error(404)
            return
        content, headers = file.read_bytes(), {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, content, body, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        self._send(206, part, body, headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.server.weight_bytes += len(content) if self.path.endswith(".safetensors") else 0
            self.wfile.write(content)


@contextmanager
def serving(repository: str, folder: Path) -> Iterator[Hub]:
    hub = Hub(repository, folder)
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
