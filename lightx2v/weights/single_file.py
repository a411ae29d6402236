"""The tensors of a part by the names of the diffusers layout, whoever wrote the files: the authors of a model and
ComfyUI have names of their own, and a file of several parts has a prefix for each of them.

Every tensor is used, known to be read by nobody, or refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.index import read_index
from lightx2v.weights.layout import Loadable
from lightx2v.weights.names import Rows, Table, expand, row
from lightx2v.weights.tensor_ref import TensorRef, joined

PARTS: Mapping[str, str] = {
    "transformer": r"(model\.)?diffusion_model\.",
    "vae": r"(first_stage_model|vae)\.",
    "text_encoder": r"(text_encoders|cond_stage_model)\.([^.]+\.transformer\.)?",
}
"""The prefixes that a part has in a file of several parts, as regular expressions."""

WRAPPERS = r"(transformer|model|language_model)\."
"""The prefixes that come and go with the class from which a part was saved."""

NEVER_READ = (
    r".*rotary_emb\.inv_freq",
    r".*rotary_pos_emb\.inv_freq",
    r".*\.position_ids",
    r"spiece_model|tekken_model|tokenizer_json",
    r"(.*\.)?logit_scale",
)
"""Tensors of real files that no part reads: tables that are computed here, and tokenizers."""

SHOWN = 3
"""How many unknown names a message shows."""


class Named(Loadable, Protocol):
    """A component for whose layers other makers may have other names."""

    @property
    def folder(self) -> str: ...

    @property
    def names(self) -> Table: ...


@dataclass(frozen=True, slots=True)
class State:
    """A state of a module: its name in the diffusers layout, and its shape."""

    source: str
    shape: tuple[int, ...]
    is_slice: bool
    """Whether more is stored than the state takes."""


def read_weights(component: Named, places: Sequence[Path]) -> dict[str, TensorRef]:
    """All tensors of the folders and single files in `places` that belong to `component`, by the names of the diffusers
    layout.

    Raises InvalidCheckpoint, naming the file, for one that cannot be read, and for tensors that the component does not
    know or finds twice.
    """
    index = read_index(*places)
    states = _states(component)
    known, unread = _known(component, states), re.compile("|".join((*NEVER_READ, *component.weights.unread)))
    found: dict[str, TensorRef] = {}
    unknown: list[str] = []
    for name, ref in index.items():
        names = list(_shorter(name, component.folder))
        rows = next((known[shorter] for shorter in names if shorter in known), None)
        for source, piece in _pieces(name, ref, rows, states) if rows else ():
            _add(found, name, source, piece)
        if not rows and names and not any(map(unread.fullmatch, names)):
            unknown.append(name)
    _refuse(component.folder, index, unknown, found)
    return found


def _states(component: Named) -> dict[str, State]:
    """All states of the module but the scales that are made here, reachable or not."""
    weights = component.weights
    made = {f"{path}.scale" for path in weights.fp8_layers}
    return {
        name: State(weights.source(name), tuple(state.shape), name in weights.last_slices)
        for name, state in component.module.state_dict().items()
        if name not in made
    }


def _known(component: Named, states: Mapping[str, State]) -> dict[str, tuple[Rows, ...]]:
    """The states behind every name that a tensor may have: the makers', the module's, and the diffusers layout's."""
    attributes: dict[str, list[str]] = {}
    for layer, _, attribute in (name.rpartition(".") for name in states):
        attributes.setdefault(layer, []).append(attribute)
    known: dict[str, tuple[Rows, ...]] = {}
    for theirs, ours in expand(component.names, [*states, *attributes]).items():
        if ours[0].path in states:
            known[theirs] = ours
        for attribute in attributes.get(ours[0].path, ()):
            known[f"{theirs}.{attribute}"] = tuple(replace(one, path=f"{one.path}.{attribute}") for one in ours)
    own = {name: row(name) for name in states}
    return known | own | {state.source: own[name] for name, state in states.items()}


def _shorter(name: str, folder: str) -> Iterator[str]:
    """`name`, and what is left of it without one prefix after the other. Nothing for a tensor of another part."""
    part = folder.removesuffix("_2")
    if any(re.match(prefix, name) for other, prefix in PARTS.items() if other != part):
        return
    prefix = re.compile(f"{PARTS[part]}|{WRAPPERS}" if part in PARTS else WRAPPERS)
    yield name
    while match := prefix.match(name):
        name = name[match.end() :]
        yield name


def _pieces(
    name: str, ref: TensorRef, rows: tuple[Rows, ...], states: Mapping[str, State]
) -> Iterator[tuple[str, TensorRef]]:
    """What the tensor `name` holds of each state in `rows`, by the states' names in the diffusers layout."""
    if len(rows) == 1:
        yield states[rows[0].path].source, _fitted(ref, states[rows[0].path])
        return
    heights = [states[one.path].shape[0] // one.parts for one in rows]
    if ref.shape[:1] != (sum(heights),):
        raise InvalidCheckpoint(
            f"{ref.file}: tensor {name} has shape {list(ref.shape)}, the configuration says {sum(heights)} rows"
        )
    parts: dict[str, dict[int, TensorRef]] = {}
    for one, height, last in zip(rows, heights, accumulate(heights), strict=True):
        parts.setdefault(one.path, {})[one.part] = ref.rows(last - height, last)
    for path, found in parts.items():
        yield states[path].source, _fitted(joined([found[part] for part in sorted(found)]), states[path])


def _fitted(ref: TensorRef, state: State) -> TensorRef:
    """`ref` in the state's shape, if only sides of length one are more or fewer: a linear layer may be stored as a
    convolution."""
    alike = [side for side in ref.shape if side != 1] == [side for side in state.shape if side != 1]
    return replace(ref, shape=state.shape) if alike and not state.is_slice else ref


def _add(found: dict[str, TensorRef], name: str, source: str, ref: TensorRef) -> None:
    if source in found:
        raise InvalidCheckpoint(f"{ref.file}: {name} is {source}, which is there a second time")
    found[source] = ref


def _refuse(
    folder: str, index: Mapping[str, TensorRef], unknown: Sequence[str], found: Mapping[str, TensorRef]
) -> None:
    """Raises InvalidCheckpoint if any tensors are unknown, or nothing is found among those that belong elsewhere."""
    useless = unknown or ([] if found else list(index))
    if useless:
        more = f" and {len(useless) - SHOWN} more" if len(useless) > SHOWN else ""
        raise InvalidCheckpoint(
            f"{index[useless[0]].file}: this model's {folder} has no use for {', '.join(useless[:SHOWN])}{more} of "
            f"{len(index)} tensors; is the file for another model or part?"
        )
