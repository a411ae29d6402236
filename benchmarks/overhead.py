"""Measures the overhead of a request of 1024x1024: HTTP, Serve, leases, the object store, PNG, base64.

    python -m benchmarks.overhead [--requests 40] [--output FILE.json]

The stages compute nothing; their outputs have the sizes of FLUX.2-klein-9B's. `nothing` is a picture of one pixel
without other payloads, so only the hops remain. PNG and JSON are also timed alone, in this process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.pictures import noise
from benchmarks.request import WARMUP, quantiles, timed
from benchmarks.server import serve
from deployments.app import compose
from deployments.http.images import images_body
from deployments.settings import parse_application
from deployments.stage.server import StageServer
from deployments.stage.wire import unpack
from lightx2v.media.encode import encode
from lightx2v.types import Conditioning, GenerateRequest, Latents, Picture, Size, StageName

SIZE = Size(1024, 1024)
TOKENS, WIDTH, CHANNELS = 512, 12288, 128
PIXELS_PER_TOKEN = 16
KINDS = ("nothing", "photo", "noise")


class Idle(StageServer):
    """Takes its inputs in and returns at once; the prompt says which picture."""

    def _work(self, job: Any, request: GenerateRequest, inputs: Any, answer: Any, grant: Any, cancel: Any) -> None:
        unpack(inputs)
        self._answer(answer, outputs(request.prompt)[self._stage.name])


def idle(args: dict[str, Any]) -> Any:
    return compose(parse_application(args), Idle)


@cache
def outputs(kind: str) -> dict[StageName, Any]:
    """What each stage returns."""
    if kind == "nothing":
        empty = torch.zeros(1, 1, dtype=torch.bfloat16)
        return {"encode": Conditioning(empty), "denoise": Latents(empty, 1, 1), "decode": noise(Size(1, 1))}
    rows, columns = SIZE.height // PIXELS_PER_TOKEN, SIZE.width // PIXELS_PER_TOKEN
    return {
        "encode": Conditioning(torch.zeros(TOKENS, WIDTH, dtype=torch.bfloat16)),
        "denoise": Latents(torch.zeros(rows * columns, CHANNELS, dtype=torch.bfloat16), rows, columns),
        "decode": noise(SIZE) if kind == "noise" else Picture(photo(SIZE)),
    }


def photo(size: Size) -> npt.NDArray[np.uint8]:
    """Channels that agree for the most part, amplitudes falling with the frequency, a sensor's noise."""
    random, shape = np.random.default_rng(0), (size.height, size.width)
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    frequency[0, 0] = 1

    def field() -> npt.NDArray[np.float64]:
        values = np.fft.irfft2(np.fft.rfft2(random.standard_normal(shape)) / frequency**1.5, shape)
        return np.asarray(values / values.std())

    light = field()
    channels = [128 + 45 * light + 12 * field() + random.standard_normal(shape) for _ in range(3)]
    return np.clip(np.dstack(channels), 0, 255).astype(np.uint8)


def measure(requests: int) -> dict[str, Any]:
    """Milliseconds. The kinds take turns, so that all of them see the same machine."""
    taken: dict[str, list[float]] = {kind: [] for kind in ("GET /v1/models", *KINDS)}
    with serve({"device": "cpu", "max_replicas": 1}, "benchmarks.overhead:idle") as server:
        connection = HTTPConnection(urlsplit(server.url).netloc)
        for _ in range(WARMUP + requests):
            for kind in taken:
                taken[kind].append(timed(lambda kind=kind: ask(connection, kind)))
        connection.close()
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "requests": requests,
        "http_ms": {kind: quantiles(times[WARMUP:]) for kind, times in taken.items()},
        "alone": {kind: alone(kind, requests) for kind in KINDS},
    }


def ask(connection: HTTPConnection, kind: str) -> None:
    """By the standard library's client: httpx takes 10 to 20 ms for the bytes of one picture."""
    if kind in KINDS:
        body = json.dumps({"prompt": kind, "size": str(SIZE)})
        connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
    else:
        connection.request(*kind.split())
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{kind}: {answer.status} {content[:500]!r}")


def alone(kind: str, times: int) -> dict[str, Any]:
    """A picture's way into a body, without a server."""
    picture = outputs(kind)["decode"]
    made = GenerateRequest("alone", kind, SIZE, 1, 0)
    file = encode(picture, "png")
    return {
        "png_bytes": len(file),
        "png_ms": quantiles([timed(lambda: encode(picture, "png")) for _ in range(times)]),
        "body_ms": quantiles([timed(lambda: images_body("png", [made], [file], 0)) for _ in range(times)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result = json.dumps(measure(options.requests), indent=1)
    print(result)
    if options.output:
        options.output.write_text(result + "\n")


if __name__ == "__main__":
    main()
