"""Reads units from files into memory, in parallel, and converts them to the types of the layout."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import torch

from lightx2v.errors import InvalidCheckpoint
from lightx2v.fp8 import quantise
from lightx2v.weights.layout import Entry, Part, Unit, part, view
from lightx2v.weights.tensor_ref import Span, TensorRef

READERS = 8
CHUNK = 1 << 30
"""Bytes of one read call; Linux takes a little under 2 GiB."""
ROWS = 1024
"""Rows that are dequantised or quantised at a time, because the intermediate values are fp32."""


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
    loads += [readers.submit(_keep_in_fp8, ref, parts) for ref, parts in _parts(unit, slab).items()]
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
    if ref.dtype == entry.dtype and entry.last_of is None and not ref.is_scaled:
        _pread(ref, into)
        return
    stored = _numbers(ref, entry.dtype) if ref.is_scaled else _stored(ref)
    into.copy_(stored if entry.last_of is None else stored.select(entry.last_of, -1))


def _keep_in_fp8(ref: TensorRef, parts: Mapping[Part, torch.Tensor]) -> None:
    """Codes with a factor for each row, or for more, are kept as they are: quantising them again would round twice."""
    whole_rows = all(span.scale is None or span.scale.ref.shape[1] == 1 for span in ref.spans)
    if ref.dtype == torch.float8_e4m3fn and whole_rows:
        _pread(ref, parts["weight"])
        for rows, factors in _factors(ref):
            parts["scale"][rows].copy_(factors)
        return
    for rows, numbers in _decoded(ref):
        made = quantise(numbers)
        parts["weight"][rows].copy_(made.codes.view(torch.int8))
        parts["scale"][rows].copy_(made.scales)


def _numbers(ref: TensorRef, dtype: torch.dtype) -> torch.Tensor:
    """What the tensor stands for, in `dtype`."""
    numbers = torch.empty(ref.shape, dtype=dtype)
    for rows, some in _decoded(ref):
        numbers[rows] = some.view(-1, *ref.row_shape).to(dtype)
    return numbers


def _decoded(ref: TensorRef) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields some rows of a matrix at a time: which, and fp32 [rows, columns], what they stand for."""
    matrix = _stored(ref).view(ref.shape[0], -1)
    for rows, factors in _factors(ref):
        yield rows, matrix[rows].float() * factors


def _factors(ref: TensorRef) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields some rows of a matrix at a time: which, and fp32, [1 or rows, 1 or columns], their factors."""
    begin, columns = 0, math.prod(ref.row_shape)
    for span in ref.spans:
        height, scale = span.nbytes // ref.pitch, span.scale
        for first in range(0, height, ROWS):
            last = min(first + ROWS, height)
            factors = scale.spread(_stored(scale.ref), first, last, columns) if scale else torch.ones(1, 1)
            yield slice(begin + first, begin + last), factors
        begin += height


def _stored(ref: TensorRef) -> torch.Tensor:
    """The tensor as it is stored."""
    stored = torch.empty(ref.shape, dtype=ref.dtype)
    _pread(ref, stored)
    return stored


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
