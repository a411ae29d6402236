"""The names that other makers have for the layers of a part: the original authors of a model, ComfyUI, trainers.

A family writes them down once, in a table. LoRA files and single weight files are both read with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a layer of ours, or one of `parts` equal parts of them. `path`: the layer, or one of its states."""

    path: str
    part: int = 0
    parts: int = 1


Table = Mapping[str, tuple[Rows, ...]]
"""Another maker's name of a layer (or of a state, where the states' own names differ too), and the layers of ours whose
rows it holds, one after the other. A `*` in both stands for the same numbers."""


def row(path: str) -> tuple[Rows, ...]:
    """The entry of a table for one layer."""
    return (Rows(path),)


def rows(parent: str, *names: str) -> tuple[Rows, ...]:
    """The entry of a table for several layers within `parent`."""
    return tuple(Rows(f"{parent}.{name}") for name in names)


def expand(table: Table, paths: Iterable[str]) -> dict[str, tuple[Rows, ...]]:
    """The table with numbers for its stars, for a part that has `paths`. An entry is left out if one of its layers is
    not there."""
    there = set(paths)
    made: dict[str, tuple[Rows, ...]] = {}
    for theirs, ours in table.items():
        for numbers in _numbers(ours[0].path, there):
            layers = tuple(Rows(_numbered(one.path, numbers), one.part, one.parts) for one in ours)
            if there.issuperset(one.path for one in layers):
                made[_numbered(theirs, numbers)] = layers
    return made


def _numbers(pattern: str, paths: Collection[str]) -> Iterator[tuple[str, ...]]:
    """What the stars of `pattern` stand for, in every path that fits it."""
    if "*" not in pattern:
        yield from [()] if pattern in paths else ()
        return
    compiled = re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))
    yield from (match.groups() for match in map(compiled.fullmatch, paths) if match)


def _numbered(pattern: str, numbers: Iterable[str]) -> str:
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern
