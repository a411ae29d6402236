"""Reads units from files into memory, in parallel, and converts them to the types of the layout."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import torch

from lightx2v.errors import InvalidCheckpoint
from lightx2v.fp8 import quantise
from lightx2v.weights.index import Span, TensorRef
from lightx2v.weights.layout import Entry, Part, Unit, part, view

READERS = 8
CHUNK = 1 << 30
"""Bytes of one read call; Linux takes a little under 2 GiB."""
ROWS = 1024
"""Rows that are quantised to fp8 at a time, because the intermediate values are fp32."""


def read(units: Iterable[Unit], memory: torch.Tensor) -> None:
    """Fills `memory`, uint8 over the whole layout. Raises InvalidCheckpoint, naming the file that cannot be read."""
    with _readers() as readers:
        for unit in units:
            _fill(unit, part(memory, unit), readers)


def read_one(unit: Unit) -> torch.Tensor:
    """uint8 [unit.nbytes] in memory of its own. Raises InvalidCheckpoint."""
    with torch.inference_mode(False), _readers() as readers:  # the readers' threads are not in inference mode
        slab = torch.empty(unit.nbytes, dtype=torch.uint8)
        _fill(unit, slab, readers)
    return slab


@contextmanager
def _readers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as pool:
        yield pool


def _fill(unit: Unit, slab: torch.Tensor, readers: ThreadPoolExecutor) -> None:
    loads = [readers.submit(_load, entry, view(slab, entry)) for entry in unit.entries if entry.part is None]
    loads += [readers.submit(_quantise, ref, parts) for ref, parts in _parts(unit, slab).items()]
    for load in loads:
        load.result()


def _parts(unit: Unit, slab: torch.Tensor) -> dict[TensorRef, dict[Part, torch.Tensor]]:
    """The places of the fp8 parts, grouped by stored tensor, so that each tensor is read once."""
    parts: dict[TensorRef, dict[Part, torch.Tensor]] = {}
    for entry in unit.entries:
        if entry.part is not None:
            parts.setdefault(entry.ref, {})[entry.part] = view(slab, entry)
    return parts


def _load(entry: Entry, into: torch.Tensor) -> None:
    ref = entry.ref
    if ref.dtype == entry.dtype and entry.last_of is None:
        _pread(ref, into)
        return
    stored = torch.empty(ref.shape, dtype=ref.dtype)
    _pread(ref, stored)
    into.copy_(stored if entry.last_of is None else stored.select(entry.last_of, -1))


def _quantise(ref: TensorRef, parts: Mapping[Part, torch.Tensor]) -> None:
    stored = torch.empty(ref.shape, dtype=ref.dtype)
    _pread(ref, stored)
    chunks = (matrix.split(ROWS) for matrix in (stored, parts["weight"], parts["scale"]))
    for rows, codes, scales in zip(*chunks, strict=True):
        made = quantise(rows.float())
        codes.copy_(made.codes.view(codes.dtype))
        scales.copy_(made.scales)


def _pread(ref: TensorRef, into: torch.Tensor) -> None:
    target = memoryview(into.reshape(-1).view(torch.uint8).numpy().data)
    try:
        with ref.file.open("rb", buffering=0) as file:
            for span in ref.spans:
                _read_span(file, ref.file, span, target[: span.nbytes])
                target = target[span.nbytes :]
    except OSError as error:
        raise InvalidCheckpoint(f"{ref.file}: cannot be read ({error})") from error


def _read_span(file: FileIO, path: Path, span: Span, target: memoryview) -> None:
    done = 0
    while done < span.nbytes:
        count = os.preadv(file.fileno(), [target[done : done + CHUNK]], span.offset + done)
        if count == 0:
            raise InvalidCheckpoint(f"{path}: ends {span.nbytes - done} bytes early; download it again")
        done += count
