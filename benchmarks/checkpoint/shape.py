"""What a checkpoint is made of beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkpoint.tokenizer import make_tokenizer
from benchmarks.checkpoint.weights import write_json

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """The three configurations, in which sizes of a family differ."""

    transformer: Values
    text_encoder: Values
    vae: Values


def write_files(folder: Path, index: Mapping[str, Any], scheduler: Values, shape: Shape) -> None:
    """`index` and the configurations; a tokenizer takes `write_tokenizer`."""
    write_json(folder / "model_index.json", index)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "transformer" / "config.json", shape.transformer)
    write_json(folder / "text_encoder" / "config.json", shape.text_encoder)
    write_json(folder / "vae" / "config.json", shape.vae)


def write_tokenizer(folder: Path) -> None:
    make_tokenizer().save_pretrained(folder / "tokenizer")
