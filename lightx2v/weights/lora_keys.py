"""The keys of a LoRA file: `<prefix><layer><part>`.

Layers are called as in the checkpoint, or as the component's table of names says. Trainers write dots and underscores
for each other, so both count as the same.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.layout import Loadable
from lightx2v.weights.names import Rows, Table, expand, row
from lightx2v.weights.read import read_stored
from lightx2v.weights.tensor_ref import TensorRef

PREFIXES = (
    "transformer_",
    "diffusion_model_",
    "model_diffusion_model_",
    "base_model_model_",
    "unet_",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "pipe_dit_",
)
"""What may come before a layer's name, with underscores for dots: of diffusers, ComfyUI, PEFT, Kohya's scripts,
OneTrainer, LyCORIS and DiffSynth-Studio. Some files have two of them."""

TEXT_ENCODER = re.compile(
    r"(base_model_model_|lora_|lycoris_)?(te\d?|text_encoders?|text_model|clip_[lg]|t5xxl|bundle_emb)_"
)
"""How names begin that belong to a text encoder, with underscores for dots."""

ADAPTER = re.compile(r"\.default(?=\.|$)")
"""The name of the adapter, which PEFT writes into keys."""

Part = Literal[
    "down", "up", "up_bias", "alpha", "magnitude", "diff", "diff_b", "diff_m",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
]  # fmt: skip

PARTS: Mapping[str, Part] = {
    ".lora_A.weight": "down",
    ".lora_down.weight": "down",
    ".lora.down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_up.weight": "up",
    ".lora.up.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora_up.bias": "up_bias",
    ".alpha": "alpha",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".dora_scale": "magnitude",
    ".diff": "diff",
    ".w_norm": "diff",
    ".diff_b": "diff_b",
    ".b_norm": "diff_b",
    ".diff_m": "diff_m",
    ".lokr_w1": "lokr_w1",
    ".lokr_w1_a": "lokr_w1_a",
    ".lokr_w1_b": "lokr_w1_b",
    ".lokr_w2": "lokr_w2",
    ".lokr_w2_a": "lokr_w2_a",
    ".lokr_w2_b": "lokr_w2_b",
    ".hada_w1_a": "hada_w1_a",
    ".hada_w1_b": "hada_w1_b",
    ".hada_w2_a": "hada_w2_a",
    ".hada_w2_b": "hada_w2_b",
}

DIFFERENCES: tuple[Part, ...] = ("diff", "diff_b", "diff_m")
MODULATION = "_modulation"
"""The end of the name of the table to which a `diff_m` is added."""

SHOWN = 8
"""Keys that a warning names."""

Layers = tuple[Rows, ...]

log = logging.getLogger(__name__)


class Adaptable(Loadable, Protocol):
    """A component whose layers other makers know by other names."""

    @property
    def names(self) -> Table: ...


class Target(NamedTuple):
    """The layers behind a name. `is_own`: whether it is the checkpoint's own name for them."""

    layers: Layers
    is_own: bool


def sort_keys(file: Path, refs: Mapping[str, TensorRef], component: Adaptable) -> dict[Layers, dict[Part, str]]:
    """For every layer of `component`, or layers with one name in common, the keys of its parts.

    Keys of a text encoder are left out, with one warning. So are those that say again what others say. Raises
    InvalidCheckpoint, naming the file and the first key that is wrong.
    """
    targets = _targets(component)
    found: dict[Layers, dict[Part, tuple[bool, str]]] = {}
    for key in _of_transformer(file, refs):
        stem, part = _split(file, key)
        target = _target(stem, part, targets)
        if target is not None:
            parts = found.setdefault(target.layers, {})
            parts[part] = _better(refs, parts.get(part), (target.is_own, key))
        elif part not in DIFFERENCES or read_stored(refs[key]).any():
            raise InvalidCheckpoint(f"{file}: {key} belongs to no linear layer of this model; is it for another one?")
    return {layers: {part: key for part, (_, key) in parts.items()} for layers, parts in found.items()}


def _of_transformer(file: Path, keys: Collection[str]) -> list[str]:
    """The keys that do not belong to a text encoder."""
    others = dict.fromkeys(key for key in keys if TEXT_ENCODER.match(key.replace(".", "_")))
    if others:
        warn_of(file, list(others), "belong to the text encoder, to which nothing is added, and are left out")
    return [key for key in keys if key not in others]


def warn_of(file: Path, keys: list[str], what: str) -> None:
    """Logs one warning that names the first of `keys`."""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    log.warning("%s: %s%s %s", file, ", ".join(keys[:SHOWN]), more, what)


def _split(file: Path, key: str) -> tuple[str, Part]:
    """The layer's name, with underscores for dots, and the part."""
    plain = ADAPTER.sub("", key)
    for end, part in PARTS.items():
        if plain.endswith(end):
            return plain.removesuffix(end).replace(".", "_"), part
    raise InvalidCheckpoint(f"{file}: {key} is no part of a LoRA as it is understood here ({', '.join(PARTS)})")


def _target(stem: str, part: Part, targets: Mapping[str, Target]) -> Target | None:
    end = MODULATION if part == "diff_m" else ""
    names = (f"{name}{end}" for name in _without_prefixes(stem))
    return next((targets[name] for name in names if name in targets), None)


def _without_prefixes(name: str) -> Iterator[str]:
    yield name
    for prefix in PREFIXES:
        if name.startswith(prefix):
            yield from _without_prefixes(name.removeprefix(prefix))


def _targets(component: Adaptable) -> dict[str, Target]:
    """The layers and the states behind every name that a file may have for them."""
    own: dict[str, str] = {}
    for state in component.module.state_dict():
        stored = component.weights.source(state)
        own |= {stored: state, stored.rpartition(".")[0]: state.rpartition(".")[0]}
    others = {name: Target(layers, False) for name, layers in expand(component.names, own.values()).items()}
    targets = others | {name: Target(row(path), True) for name, path in own.items() if path}
    return {name.replace(".", "_"): target for name, target in targets.items()}


def _better(refs: Mapping[str, TensorRef], one: tuple[bool, str] | None, other: tuple[bool, str]) -> tuple[bool, str]:
    """Of two keys for one thing, that with the checkpoint's own name. Raises InvalidCheckpoint if both are of one kind
    and their values differ."""
    if one is None:
        return other
    first, second = refs[one[1]], refs[other[1]]
    if one[0] == other[0] and not torch.equal(read_stored(first), read_stored(second)):
        raise InvalidCheckpoint(f"{first.file}: {other[1]} is there a second time, as {one[1]}")
    kept, dropped = (other, one) if other[0] and not one[0] else (one, other)
    log.warning("%s: %s says again what %s says, and is left out", first.file, dropped[1], kept[1])
    return kept
