"""Where a component's reachable tensors lie in one flat stretch of bytes, unit by unit. Pure offsets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Protocol

import torch
from torch import nn

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.index import TensorRef

ALIGNMENT = 256
"""Bytes. Every kernel and every copy engine is content with it."""

REST, HOST = "rest", "host"


class Loadable(Protocol):
    """What the weights of a component need to know of it: `lightx2v.models.component.Component` says more."""

    folder: ClassVar[str]
    module: nn.Module
    dtype: torch.dtype
    blocks: tuple[str, ...]
    host_tensors: frozenset[str]
    unreachable: frozenset[str]

    def source(self, name: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One state of the module: read from `ref`, laid at `offset` within its unit as `dtype` and `shape`."""

    name: str
    ref: TensorRef
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return _nbytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Unit:
    """What comes and goes together: one block, or the rest."""

    name: str
    offset: int
    nbytes: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """`rest` first, then the blocks in order of use; `host` holds what never leaves the host."""

    rest: Unit
    blocks: tuple[Unit, ...]
    host: Unit

    @property
    def units(self) -> tuple[Unit, ...]:
        return (self.rest, *self.blocks)


def make_layout(component: Loadable, index: dict[str, TensorRef], blocks: tuple[str, ...]) -> Layout:
    """Lays out the reachable states of `component`, one unit per path in `blocks`.

    Raises InvalidCheckpoint if a state is missing in `index` or has another shape than the configuration says.
    """
    groups: dict[str, list[tuple[str, torch.Tensor, TensorRef]]] = {path: [] for path in (REST, *blocks, HOST)}
    owner = {f"{path}.": path for path in blocks}
    for name, meta in reachable(component):
        group = HOST if name in component.host_tensors else _owner(name, owner)
        groups[group].append((name, meta, _find(component, index, name, meta)))
    units: dict[str, Unit] = {}
    offset = 0
    for name, states in groups.items():
        units[name] = _unit(name, offset, states, component.dtype)
        offset += units[name].nbytes
    return Layout(units[REST], tuple(units[path] for path in blocks), units[HOST])


def reachable(component: Loadable) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and persistent buffer that a forward pass can read, on the meta device, by name."""
    persistent = component.module.state_dict(keep_vars=True)
    for name, state in chain(component.module.named_parameters(), component.module.named_buffers()):
        if name in persistent and name not in component.unreachable:
            yield name, state


def _unit(name: str, start: int, states: list[tuple[str, torch.Tensor, TensorRef]], dtype: torch.dtype) -> Unit:
    entries: list[Entry] = []
    offset = 0
    for state, meta, ref in states:
        kept = dtype if ref.dtype.is_floating_point else ref.dtype
        entries.append(Entry(state, ref, offset, kept, tuple(meta.shape)))
        offset += _align(entries[-1].nbytes)
    return Unit(name, start, offset, tuple(entries))


def _find(component: Loadable, index: dict[str, TensorRef], name: str, meta: torch.Tensor) -> TensorRef:
    source = component.source(name)
    if source not in index:
        raise InvalidCheckpoint(f"{component.folder}: the weights lack the tensor {source}")
    ref = index[source]
    if ref.shape != tuple(meta.shape):
        raise InvalidCheckpoint(
            f"{ref.file}: tensor {source} has shape {list(ref.shape)}, the configuration says {list(meta.shape)}"
        )
    return ref


def _owner(name: str, owner: dict[str, str]) -> str:
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) + "." for length in range(1, len(parts)))
    return next((owner[prefix] for prefix in prefixes if prefix in owner), REST)


def _nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()


def _align(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
