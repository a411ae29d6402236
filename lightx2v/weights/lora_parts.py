"""The parts that a LoRA file has for one layer, put together to products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.layout import Entry
from lightx2v.weights.lora_keys import Part
from lightx2v.weights.lora_products import Decomposed, Factor, Hadamard, Kronecker, LowRank, Offset, Product, Whole

Parts = Mapping[Part, Entry]


def make_products(file: Path, parts: Parts) -> Iterator[Product]:
    """What `parts` add to their layer. Raises InvalidCheckpoint for a part that lacks its neighbour."""
    if any(part.startswith("lokr") for part in parts):
        yield Kronecker(
            _factor(file, parts, "lokr_w1", "lokr_w1_a", "lokr_w1_b"),
            _factor(file, parts, "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
        )
    if any(part.startswith("hada") for part in parts):
        yield Hadamard(_product(file, parts, "hada_w1_a", "hada_w1_b"), _product(file, parts, "hada_w2_a", "hada_w2_b"))
    if parts.keys() & {"down", "up", "up_bias", "magnitude"}:
        yield _low_rank(file, parts)
    if "diff" in parts:
        yield Whole(parts["diff"])
    if "diff_b" in parts:
        yield Offset(parts["diff_b"])


def _low_rank(file: Path, parts: Parts) -> LowRank:
    down, up, bias = _need(file, parts, "down"), _need(file, parts, "up"), parts.get("up_bias")
    return Decomposed(down, up, bias, magnitude=parts["magnitude"]) if "magnitude" in parts else LowRank(down, up, bias)


def _factor(file: Path, parts: Parts, whole: Part, above: Part, below: Part) -> Factor:
    """A matrix that may be stored whole."""
    return Factor((parts[whole],)) if whole in parts else _product(file, parts, above, below)


def _product(file: Path, parts: Parts, above: Part, below: Part) -> Factor:
    return Factor((_need(file, parts, above), _need(file, parts, below)))


def _need(file: Path, parts: Parts, part: Part) -> Entry:
    if part not in parts:
        raise InvalidCheckpoint(f"{file}: {next(iter(parts.values())).name} has no {part} part beside it")
    return parts[part]
