"""What is asked for: the same of a server through HTTP and of a pipeline in this process, always in other words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import httpx
from PIL import Image

from lightx2v.core import GenerateRequest, Reference, Size
from lightx2v.models.recipe import make_reference
from lightx2v.models.registry import Recipe
from tests.pictures import noise, png

TEXT = "text"


@dataclass(frozen=True)
class Ask:
    """Requests that differ in their prompts and seeds only. What is None is up to the model."""

    size: Size
    steps: int | None = None
    guidance: float | None = None
    references: int = 0
    """Pictures of `size` that each request refers to."""

    @property
    def kind(self) -> str:
        return f"{self.references} references" if self.references else TEXT

    def send(self, http: httpx.Client, number: int) -> str:
        """The picture, in base64. Raises RuntimeError if the answer is none."""
        fields: dict[str, Any] = {"prompt": _prompt(number), "seed": number, "size": str(self.size)}
        fields |= {} if self.steps is None else {"num_inference_steps": self.steps}
        fields |= {} if self.guidance is None else {"guidance_scale": self.guidance}
        if self.references:
            files = [("image[]", ("reference.png", data, "image/png")) for data in self._files]
            answer = http.post("/v1/images/edits", data={key: str(value) for key, value in fields.items()}, files=files)
        else:
            answer = http.post("/v1/images/generations", json=fields)
        if answer.status_code != httpx.codes.OK:
            raise RuntimeError(f"{self.kind}: {answer.status_code} {answer.text[:500]}")
        picture: str = answer.json()["data"][0]["b64_json"]
        return picture

    def request(self, recipe: Recipe, number: int, references: Sequence[Reference]) -> GenerateRequest:
        """The same for the engine; `references` are those of `pictures`."""
        return GenerateRequest(
            id=str(number),
            prompt=_prompt(number),
            size=self.size,
            steps=recipe.steps if self.steps is None else self.steps,
            seed=number,
            guidance=recipe.guidance if self.guidance is None else self.guidance,
            references=tuple(reference.fitted.size for reference in references),
        )

    def pictures(self, recipe: Recipe) -> tuple[Reference, ...]:
        drawn = (noise(self.size, seed) for seed in range(self.references))
        return tuple(make_reference(Image.fromarray(picture.pixels), recipe) for picture in drawn)

    @cached_property
    def _files(self) -> tuple[bytes, ...]:
        return tuple(png(noise(self.size, seed)) for seed in range(self.references))


def numbers() -> Iterator[int]:
    """Of requests; no two are the same."""
    return count(1)


def _prompt(number: int) -> str:
    return f"picture number {number} of a lighthouse at dawn"
