"""The layout of a component's reachable tensors in one flat stretch of bytes, unit by unit. It holds only offsets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal, Protocol

import torch
from torch import nn

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.tensor_ref import TensorRef

ALIGNMENT = 256
"""Bytes between the possible beginnings of states, enough for every kernel and every copy engine."""

REST, HOST = "rest", "host"

Part = Literal["weight", "scale", "packed"]
"""What a layer keeps of a stored weight: in fp8 the e4m3 codes (as int8) and the fp32 scale of each row, or the packed
bytes (as int8)."""
FP8_PARTS: tuple[Part, ...] = ("weight", "scale")


def same_name(name: str) -> str:
    """The name itself, for a module whose states are called as in the checkpoint."""
    return name


@dataclass(frozen=True, slots=True)
class WeightMap:
    """Where the states of a module are in a checkpoint, and how they are kept."""

    folders: tuple[str, ...]
    """The folders of the checkpoint that hold them."""
    blocks: tuple[str, ...] = ()
    """Paths of the submodules that can come and go one by one, in order of use. Each must be entered by `__call__`."""
    host_tensors: frozenset[str] = frozenset()
    """States that stay on the host, because they are read once per request or less, or only a few of their rows are."""
    unreachable: frozenset[str] = frozenset()
    """States that no forward pass reads. They are neither loaded nor placed."""
    last_slices: Mapping[str, int] = field(default_factory=dict)
    """The dimension of the stored tensor, for states that are its last slice along that dimension."""
    precise: frozenset[str] = frozenset()
    """States that are fp32 whatever the component's dtype is."""
    fp8_layers: frozenset[str] = frozenset()
    """Paths of linear layers that are kept in fp8. Each makes two states of one stored tensor."""
    packed_layers: frozenset[str] = frozenset()
    """Paths of linear layers whose weights are packed."""
    unpacked_bytes: int = 0
    """Device bytes of the largest packed layer's weight while it is used."""
    source: Callable[[str], str] = same_name
    """The checkpoint's name of a state."""
    unread: tuple[str, ...] = ()
    """The other tensors that checkpoints have and no forward pass reads, as regular expressions."""


class Loadable(Protocol):
    """A component, as far as its weights are concerned."""

    module: nn.Module
    dtype: torch.dtype
    weights: WeightMap


@dataclass(frozen=True, slots=True)
class Entry:
    """One state of a module: what it is made of on disk, and its place in its unit.

    With `last_of`, it is the last slice of the stored tensor along that dimension. With `part`, it is what an fp8 layer
    or a packed one keeps of it.
    """

    name: str
    ref: TensorRef
    precision: torch.dtype
    """The dtype of floating-point states and of parts; others keep their own."""
    last_of: int | None = None
    part: Part | None = None
    offset: int = 0
    """Bytes from the beginning of the unit."""

    @property
    def dtype(self) -> torch.dtype:
        return self.precision if self.part or self.ref.is_floating_point else self.ref.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        stored = self.ref.shape
        if self.part == "scale":
            return (*stored[:-1], 1)
        if self.part == "packed":
            return (stored[0], self.ref.pitch)
        return stored if self.last_of is None else stored[: self.last_of] + stored[self.last_of + 1 :]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def stride(self) -> int:
        """Bytes from its beginning to where another may begin."""
        return -(-self.nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Unit:
    """The states that come and go together: those of one block, or of the rest."""

    name: str
    offset: int
    nbytes: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """All units of a component. `rest` comes first, then the blocks in order of use. `host` stays on the host."""

    rest: Unit
    blocks: tuple[Unit, ...]
    host: Unit

    @property
    def units(self) -> tuple[Unit, ...]:
        return (self.rest, *self.blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of all units together."""
        return self.host.offset + self.host.nbytes


def make_layout(component: Loadable, index: dict[str, TensorRef], blocks: tuple[str, ...]) -> Layout:
    """Lays out the reachable states of `component`, one unit per path in `blocks`.

    Raises InvalidCheckpoint if a state is missing in `index` or has another shape than the configuration says.
    """
    groups: dict[str, list[Entry]] = {path: [] for path in (REST, *blocks, HOST)}
    owner = {f"{path}.": path for path in blocks}
    for name, meta in reachable(component):
        group = HOST if name in component.weights.host_tensors else _owner(name, owner)
        groups[group].append(_find(component, index, name, meta))
    units: dict[str, Unit] = {}
    offset = 0
    for name, entries in groups.items():
        units[name] = make_unit(name, offset, entries)
        offset += units[name].nbytes
    return Layout(units[REST], tuple(units[path] for path in blocks), units[HOST])


def part(memory: torch.Tensor, unit: Unit) -> torch.Tensor:
    """The bytes of `unit` as a view of `memory`, which holds the whole layout."""
    return memory[unit.offset : unit.offset + unit.nbytes]


def view(slab: torch.Tensor, entry: Entry, start: int | None = None) -> torch.Tensor:
    """The state of `entry` as a view of its unit's bytes, or of other bytes in which it begins at `start`."""
    start = entry.offset if start is None else start
    flat = slab[start : start + entry.nbytes]
    return flat.view(entry.dtype).view(entry.shape)


def reachable(component: Loadable) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every parameter and persistent buffer that a forward pass can read, by name, on the meta device."""
    persistent = component.module.state_dict(keep_vars=True)
    for name, state in chain(component.module.named_parameters(), component.module.named_buffers()):
        if name in persistent and name not in component.weights.unreachable:
            yield name, state


def make_unit(name: str, start: int, entries: Iterable[Entry]) -> Unit:
    """Lays out `entries` one after the other."""
    placed: list[Entry] = []
    offset = 0
    for entry in entries:
        placed.append(replace(entry, offset=offset))
        offset += entry.stride
    return Unit(name, start, offset, tuple(placed))


def _find(component: Loadable, index: dict[str, TensorRef], name: str, meta: torch.Tensor) -> Entry:
    part = _part(component, name)
    source = component.weights.source(f"{name.rpartition('.')[0]}.weight" if part else name)
    if source not in index:
        raise InvalidCheckpoint(f"{component.weights.folders[0]}: the weights lack the tensor {source}")
    dtype = meta.dtype if part else torch.float32 if name in component.weights.precise else component.dtype
    entry = Entry(name, index[source], dtype, component.weights.last_slices.get(name), part)
    if entry.shape != tuple(meta.shape):
        raise InvalidCheckpoint(
            f"{entry.ref.file}: tensor {source} has shape {list(entry.ref.shape)}, the configuration says "
            f"{list(meta.shape)}"
        )
    if (part or meta.is_floating_point()) and not entry.ref.is_floating_point:
        raise InvalidCheckpoint(f"{entry.ref.file}: tensor {source} holds {entry.ref.dtype} without a scale")
    return entry


def _part(component: Loadable, name: str) -> Part | None:
    path, _, attribute = name.rpartition(".")
    if path in component.weights.packed_layers and attribute == "weight":
        return "packed"
    if path in component.weights.fp8_layers:
        return next((part for part in FP8_PARTS if part == attribute), None)
    return None


def _owner(name: str, owner: dict[str, str]) -> str:
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) + "." for length in range(1, len(parts)))
    return next((owner[prefix] for prefix in prefixes if prefix in owner), REST)
