"""What the requests of a load ask for: kinds of requests, each with its share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from benchmarks.ask import Ask
from lightx2v.types import Size


@dataclass(frozen=True)
class Call:
    """One request: its number gives its prompt and its seed."""

    ask: Ask
    number: int


@dataclass(frozen=True)
class Mix:
    """Kinds of requests. A request is of a kind with the probability that the kind's weight has among all."""

    asks: tuple[Ask, ...]
    weights: tuple[float, ...]

    def calls(self, numbers: Iterator[int], seed: int) -> Iterator[Call]:
        """Requests without end. The kinds are the same for the same seed."""
        random = Random(seed)
        for number in numbers:
            (ask,) = random.choices(self.asks, self.weights)
            yield Call(ask, number)


def even(*asks: Ask) -> Mix:
    """A mix of kinds that come equally often."""
    return Mix(asks, (1.0,) * len(asks))


def read_mix(file: Path) -> Mix:
    """A mix from YAML, a list of kinds. Each has a `size`; `model`, `steps`, `guidance`, `references` and `weight` may
    be left out:

        - {model: klein-9b, size: 1024x1024, steps: 4, weight: 3}
        - {model: z-image-turbo, size: 512x768}

    Raises ValueError for a text that is no mix.
    """
    kinds = yaml.safe_load(file.read_text())
    if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, dict) for kind in kinds):
        raise ValueError(f"{file}: write a list of kinds, as in [{{size: 1024x1024}}, {{size: 512x512, weight: 2}}]")
    weights = tuple(float(kind.get("weight", 1)) for kind in kinds)
    return Mix(tuple(_ask(kind, file) for kind in kinds), weights)


def parse_size(text: str) -> Size:
    """'1024x1024'. Raises ValueError."""
    width, _, height = text.partition("x")
    return Size(int(width), int(height))


def _ask(kind: Mapping[str, Any], file: Path) -> Ask:
    fields = {key: value for key, value in kind.items() if key != "weight"}
    try:
        return Ask(**fields | {"size": parse_size(fields["size"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: {dict(kind)} is no kind of request: {error}") from error
