"""The requests of benchmarks, each with a new prompt: for a server over HTTP, or for a pipeline in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPConnection
from itertools import count
from typing import Any

import httpx
from PIL import Image

from benchmarks.pictures import noise, png
from lightx2v.models.reference_image import make_reference
from lightx2v.models.spec import ModelSpec
from lightx2v.types import GenerateRequest, Reference, Size

TEXT = "text"
ANYWHERE = "http://127.0.0.1"
"""The host that httpx requires in a URL; the connection's own is used."""


@dataclass(frozen=True)
class Ask:
    """Requests that differ in prompt and seed only. None leaves a field to the model."""

    size: Size
    steps: int | None = None
    guidance: float | None = None
    references: int = 0
    """Pictures of `size` that each request refers to."""
    model: str | None = None
    """The model's name in the API; None: the first that the server has."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Ask:
        """One that `dataclasses.asdict` has written. Raises KeyError or TypeError for something else."""
        return cls(**{**values, "size": Size(**values["size"])})

    @property
    def kind(self) -> str:
        return f"{self.references} references" if self.references else TEXT

    @property
    def label(self) -> str:
        """What tells it from the others of a mix: "klein-9b, text, 1024x1024, 4 steps"."""
        parts = self.model, self.kind, str(self.size), None if self.steps is None else f"{self.steps} steps"
        return ", ".join(part for part in parts if part)

    def send(self, http: HTTPConnection, number: int) -> tuple[float, bytes]:
        """The seconds of a request, and the answer's body. Raises RuntimeError if it is no picture.

        By the standard library's client: httpx takes 10 to 20 ms for the bytes of one picture.
        """
        made = self.post(number)
        start = time.monotonic()
        http.request(made.method, made.url.path, made.read(), dict(made.headers))
        answer = http.getresponse()
        body = answer.read()
        seconds = time.monotonic() - start
        if answer.status != httpx.codes.OK:
            raise RuntimeError(f"{self.kind}: {answer.status} {body[:500]!r}")
        return seconds, body

    def post(self, number: int) -> httpx.Request:
        """The request over HTTP, built by httpx, which can encode forms."""
        fields: dict[str, Any] = {"prompt": _prompt(number), "seed": number, "size": str(self.size)}
        fields |= {} if self.model is None else {"model": self.model}
        fields |= {} if self.steps is None else {"num_inference_steps": self.steps}
        fields |= {} if self.guidance is None else {"guidance_scale": self.guidance}
        if not self.references:
            return httpx.Request("POST", f"{ANYWHERE}/v1/images/generations", json=fields)
        files = [("image[]", ("reference.png", data, "image/png")) for data in self._files]
        form = {key: str(value) for key, value in fields.items()}
        return httpx.Request("POST", f"{ANYWHERE}/v1/images/edits", data=form, files=files)

    def request(self, spec: ModelSpec, number: int, references: Sequence[Reference]) -> GenerateRequest:
        """The same request for the engine; `references` are those of `pictures`."""
        return GenerateRequest(
            id=str(number),
            prompt=_prompt(number),
            size=self.size,
            steps=spec.steps if self.steps is None else self.steps,
            seed=number,
            guidance=spec.guidance if self.guidance is None else self.guidance,
            references=tuple(reference.fitted.size for reference in references),
        )

    def pictures(self, spec: ModelSpec) -> tuple[Reference, ...]:
        drawn = (noise(self.size, seed) for seed in range(self.references))
        return tuple(make_reference(Image.fromarray(picture.pixels), spec) for picture in drawn)

    @cached_property
    def _files(self) -> tuple[bytes, ...]:
        return tuple(png(noise(self.size, seed)) for seed in range(self.references))


def numbers(first: int = 1) -> Iterator[int]:
    """The numbers of requests, from `first`; each gives a different prompt."""
    return count(first)


def _prompt(number: int) -> str:
    return f"picture number {number} of a lighthouse at dawn"
