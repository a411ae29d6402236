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
from lightx2v.packing import Unpack
from lightx2v.weights.layout import FP8_PARTS, Entry, Part, Unit, part, view
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
    loads = [readers.submit(_load, entry, view(slab, entry)) for entry in unit.entries if entry.part not in FP8_PARTS]
    loads += [readers.submit(_keep_in_fp8, ref, parts) for ref, parts in _parts(unit, slab).items()]
    for load in loads:
        load.result()


def _parts(unit: Unit, slab: torch.Tensor) -> dict[TensorRef, dict[Part, torch.Tensor]]:
    """The places of the fp8 parts, grouped by stored tensor, so that each tensor is read once."""
    parts: dict[TensorRef, dict[Part, torch.Tensor]] = {}
    for entry in unit.entries:
        if entry.part is not None and entry.part in FP8_PARTS:
            parts.setdefault(entry.ref, {})[entry.part] = view(slab, entry)
    return parts


def _load(entry: Entry, into: torch.Tensor) -> None:
    ref = entry.ref
    as_stored = ref.dtype == entry.dtype and entry.last_of is None and not ref.is_encoded
    if as_stored or entry.part == "packed":
        _pread(ref, into)
        return
    stored = _numbers(ref, entry.dtype) if ref.is_encoded else read_stored(ref)
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
    if ref.packing is not None:
        yield from _unpacked(ref, ref.packing.unpacker())
        return
    matrix = read_stored(ref).view(ref.shape[0], -1)
    for rows, factors in _factors(ref):
        yield rows, matrix[rows].float() * factors


def _unpacked(ref: TensorRef, unpack: Unpack) -> Iterator[tuple[slice, torch.Tensor]]:
    """The same for a packed tensor. All of it at once if its blocks lie across rows: such tensors are small."""
    height, step = ref.shape[0], ROWS if ref.has_whole_rows else ref.shape[0]
    stored = read_stored(ref)
    for first in range(0, height, step):
        last = min(first + step, height)
        packed = stored[first * ref.pitch : last * ref.pitch] if ref.has_whole_rows else stored
        yield slice(first, last), unpack(packed[None]).view(last - first, -1)


def _factors(ref: TensorRef) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields some rows of a matrix at a time: which, and fp32, [1 or rows, 1 or columns], their factors."""
    begin, columns = 0, math.prod(ref.row_shape)
    for span in ref.spans:
        height, scale = span.nbytes // ref.pitch, span.scale
        for first in range(0, height, ROWS):
            last = min(first + ROWS, height)
            factors = scale.spread(read_stored(scale.ref), first, last, columns) if scale else torch.ones(1, 1)
            yield slice(begin + first, begin + last), factors
        begin += height


def read_stored(ref: TensorRef) -> torch.Tensor:
    """The tensor as it is stored: bytes if it is packed. Raises InvalidCheckpoint."""
    stored = torch.empty(ref.nbytes if ref.packing else ref.shape, dtype=ref.dtype)
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
