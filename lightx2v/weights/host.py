"""Weights on the host: read once and kept (`HostCopy`), or read from disk for every use (`OnDisk`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import torch

from lightx2v.errors import InvalidCheckpoint, OutOfMemory
from lightx2v.weights.index import TensorRef
from lightx2v.weights.layout import Entry, Layout, Unit

READERS = 8
CHUNK = 1 << 30
"""Bytes of one read call; Linux takes a little under 2 GiB."""


class Source(Protocol):
    """Where a unit's bytes come from."""

    def unit(self, unit: Unit) -> torch.Tensor:
        """uint8 [unit.nbytes] on the host, laid out as the unit says."""

    def state(self, entry: Entry) -> torch.Tensor:
        """One host-side state with its own type and shape."""

    def close(self) -> None:
        """Gives the host memory back."""


class HostCopy:
    """A process's master copy: one allocation of exact size, filled once by parallel reads, never written again.

    For a CUDA device it is registered with the driver (pinned) in place, so a copy to the device runs at the link's
    rate; torch's own pinned allocator would round the size up to a power of two.
    """

    def __init__(self, layout: Layout, pinned: bool) -> None:
        self._host = layout.host
        self._bytes = torch.empty(layout.host.offset + layout.host.nbytes, dtype=torch.uint8)
        with _readers() as readers:
            for unit in (*layout.units, layout.host):
                _fill(unit, self._slice(unit), readers)
        self._pinned = pinned
        if pinned:
            _register(self._bytes)

    def unit(self, unit: Unit) -> torch.Tensor:
        return self._slice(unit)

    def state(self, entry: Entry) -> torch.Tensor:
        return view(self._slice(self._host), entry)

    def close(self) -> None:
        if self._pinned:
            _check(torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr()))
            self._pinned = False

    def _slice(self, unit: Unit) -> torch.Tensor:
        return self._bytes[unit.offset : unit.offset + unit.nbytes]


class OnDisk:
    """`lazy_load`: no host copy; a unit is read for every use. Host states are few and read once."""

    def __init__(self, layout: Layout) -> None:
        self._host = _read(layout.host)

    def unit(self, unit: Unit) -> torch.Tensor:
        return _read(unit)

    def state(self, entry: Entry) -> torch.Tensor:
        return view(self._host, entry)

    def close(self) -> None:
        return None


def view(slab: torch.Tensor, entry: Entry) -> torch.Tensor:
    """The state that `entry` describes, as a view of its unit's bytes."""
    flat = slab[entry.offset : entry.offset + entry.nbytes]
    return flat.view(entry.dtype).view(entry.shape)


def _read(unit: Unit) -> torch.Tensor:
    with torch.inference_mode(False), _readers() as readers:  # the readers' threads are not in inference mode
        slab = torch.empty(unit.nbytes, dtype=torch.uint8)
        _fill(unit, slab, readers)
    return slab


@contextmanager
def _readers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as pool:
        yield pool


def _fill(unit: Unit, slab: torch.Tensor, readers: ThreadPoolExecutor) -> None:
    loads = [readers.submit(_load, entry, view(slab, entry)) for entry in unit.entries]
    for load in loads:
        load.result()


def _load(entry: Entry, into: torch.Tensor) -> None:
    ref = entry.ref
    if ref.dtype == entry.dtype:
        _pread(ref, into)
        return
    stored = torch.empty(ref.shape, dtype=ref.dtype)
    _pread(ref, stored)
    into.copy_(stored)


def _pread(ref: TensorRef, into: torch.Tensor) -> None:
    target = memoryview(into.reshape(-1).view(torch.uint8).numpy().data)
    done = 0
    descriptor = os.open(ref.file, os.O_RDONLY)
    try:
        while done < ref.nbytes:
            count = os.preadv(descriptor, [target[done : done + CHUNK]], ref.offset + done)
            if count == 0:
                raise InvalidCheckpoint(f"{ref.file}: ends {ref.nbytes - done} bytes early; download it again")
            done += count
    except OSError as error:
        raise InvalidCheckpoint(f"{ref.file}: cannot be read ({error})") from error
    finally:
        os.close(descriptor)


def _register(memory: torch.Tensor) -> None:
    result = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    _check(result, f"pinning {memory.nbytes} bytes of host memory failed; raise the memlock limit or use lazy_load")


def _check(result: int, message: str = "the CUDA driver refused a call") -> None:
    if int(result) != 0:
        raise OutOfMemory(f"{message} (CUDA error {int(result)})")
