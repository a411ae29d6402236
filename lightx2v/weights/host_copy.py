"""Weights on the host: read once per node and kept (`HostCopy`), or read from disk for every use (`OnDisk`)."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from mmap import mmap
from pathlib import Path
from typing import Protocol
from weakref import finalize

import torch

from lightx2v.errors import InvalidCheckpoint, OutOfMemory
from lightx2v.weights.layout import Entry, Layout, Unit, part, view
from lightx2v.weights.read import read, read_one
from lightx2v.weights.shared_memory import share


class Source(Protocol):
    """A source of the bytes of units."""

    def unit(self, unit: Unit) -> torch.Tensor:
        """uint8 [unit.nbytes] on the host, in the unit's layout."""

    def state(self, entry: Entry) -> torch.Tensor:
        """A state that stays on the host, in its own type and shape."""

    def close(self) -> None:
        """Gives the host memory back."""


class HostCopy:
    """The node's copy of a component's weights. It is read once, never written again, and shared by every process that
    lays the same files out in the same way. It is freed with the last of them (`lightx2v.weights.shared_memory`).

    For a CUDA device, each process registers the copy with the driver (pinned) in place, so that copies to the device
    run at the link's rate. torch's own pinned allocator would round the size up to a power of two. The memory is
    unregistered even if nobody closes the copy: the driver refuses to register an address twice, whatever is there by
    then.

    Raises OutOfMemory if this node has no room for it or the driver does not pin it, InvalidCheckpoint if a file cannot
    be read.
    """

    def __init__(self, layout: Layout, pinned: bool) -> None:
        self._host = layout.host
        memory = share(_identity(layout), layout.nbytes, partial(_load, layout))
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self._unpin = _register(self, self._bytes) if pinned else None

    def unit(self, unit: Unit) -> torch.Tensor:
        return self._slice(unit)

    def state(self, entry: Entry) -> torch.Tensor:
        return view(self._slice(self._host), entry)

    def close(self) -> None:
        if self._unpin is not None:
            self._unpin()
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def _slice(self, unit: Unit) -> torch.Tensor:
        return part(self._bytes, unit)


class OnDisk:
    """Weights without a host copy (`lazy_load`): a unit is read for every use. Host states are read once and kept."""

    def __init__(self, layout: Layout) -> None:
        self._host = read_one(layout.host)

    def unit(self, unit: Unit) -> torch.Tensor:
        return read_one(unit)

    def state(self, entry: Entry) -> torch.Tensor:
        return view(self._host, entry)

    def close(self) -> None:
        return None


def _identity(layout: Layout) -> str:
    """A name that changes with all that the bytes depend on: the layout with its types, and the versions of files."""
    files = sorted(
        {file for unit in (*layout.units, layout.host) for entry in unit.entries for file in entry.ref.files}
    )
    return sha256(repr((layout, [_version(file) for file in files])).encode()).hexdigest()[:32]


def _version(file: Path) -> tuple[int, ...]:
    """A value that changes with a file's content, even if its time of modification was set back. Raises
    InvalidCheckpoint if there is no such file."""
    try:
        status = file.stat()
    except OSError as error:
        raise InvalidCheckpoint(f"{file}: cannot be read ({error})") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _load(layout: Layout, memory: mmap) -> None:
    read((*layout.units, layout.host), torch.frombuffer(memory, dtype=torch.uint8))


def _register(owner: object, memory: torch.Tensor) -> finalize[..., object]:
    """Pins `memory`. Returns a finalizer that unpins it once: when called, or when `owner` is gone. At the end of a
    process the driver does so itself."""
    result = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    _check(result, f"pinning {memory.nbytes} bytes of host memory failed; raise the memlock limit or use lazy_load")
    unpin = finalize(owner, _unregister, memory.data_ptr())
    unpin.atexit = False
    return unpin


def _unregister(address: int) -> None:
    _check(torch.cuda.cudart().cudaHostUnregister(address))


def _check(result: int, message: str = "the CUDA driver refused a call") -> None:
    if int(result) != 0:
        raise OutOfMemory(f"{message} (CUDA error {int(result)})")
