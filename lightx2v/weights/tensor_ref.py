"""Where a tensor is on disk, and what its stored numbers stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lightx2v.errors import InvalidCheckpoint
from lightx2v.packing import Packing


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a file, in bytes."""

    offset: int
    nbytes: int
    scale: Scale | None = None
    """The factor of the numbers in it; None: they are stored as they are."""


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor on disk: the spans of `file` that hold its bytes, one after the other."""

    file: Path
    spans: tuple[Span, ...]
    dtype: torch.dtype
    """Of what is stored: uint8 if it is packed."""
    shape: tuple[int, ...]
    """Of what it stands for."""
    packing: Packing | None = None

    @property
    def nbytes(self) -> int:
        return sum(span.nbytes for span in self.spans)

    @property
    def files(self) -> frozenset[Path]:
        """The file, and those of the scales."""
        return frozenset({self.file, *(span.scale.ref.file for span in self.spans if span.scale)})

    @property
    def is_encoded(self) -> bool:
        """Whether the stored numbers stand for others."""
        return self.packing is not None or self.is_scaled

    @property
    def is_scaled(self) -> bool:
        """Whether any of the stored numbers has a factor."""
        return any(span.scale for span in self.spans)

    @property
    def is_floating_point(self) -> bool:
        """Whether it stands for floating-point numbers, which are kept in the component's type."""
        return self.dtype.is_floating_point or self.is_encoded

    @property
    def pitch(self) -> int:
        """Bytes of a row."""
        return self.nbytes // self.shape[0]

    @property
    def has_whole_rows(self) -> bool:
        """Whether no block of packed numbers lies in two rows."""
        return self.packing is None or self.packing.divides(math.prod(self.row_shape))

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape[1:]

    def part(self, index: int, parts: int) -> TensorRef:
        """One of `parts` equal parts of the rows of a tensor that is stored in one span."""
        return self.rows(index * self.shape[0] // parts, (index + 1) * self.shape[0] // parts)

    def rows(self, first: int, last: int) -> TensorRef:
        """The rows from `first` up to `last` of a tensor that is stored in one span. Raises InvalidCheckpoint if that
        would cut a block of packed numbers, or a scale's tile."""
        (span,) = self.spans
        if not self.has_whole_rows:
            raise InvalidCheckpoint(f"{self.file}: a tensor of {list(self.shape)} is packed across its rows")
        offset, nbytes = span.offset + first * self.pitch, (last - first) * self.pitch
        taken = Span(offset, nbytes, span.scale.rows(first, last) if span.scale else None)
        return replace(self, spans=(taken,), shape=(last - first, *self.row_shape))


@dataclass(frozen=True, slots=True)
class Scale:
    """The factors of a stored matrix: one for each tile of `height` rows and `width` columns. The last tiles may be
    smaller."""

    ref: TensorRef
    """[tiles, tiles]. If a side has a single tile, that tile is as long as the matrix."""
    height: int
    width: int

    def rows(self, first: int, last: int) -> Scale:
        """The factors of the matrix's rows from `first` up to `last`. Raises InvalidCheckpoint if `first` lies within a
        tile."""
        if self.ref.shape[0] == 1:
            return self
        if first % self.height:
            raise InvalidCheckpoint(f"{self.ref.file}: row {first} is not the first that its scale is for")
        return replace(self, ref=self.ref.rows(first // self.height, math.ceil(last / self.height)))

    def spread(self, factors: torch.Tensor, first: int, last: int, columns: int) -> torch.Tensor:
        """fp32 [rows, 1 or columns]: the factors of the matrix's rows from `first` up to `last`. `factors`: the values
        of `ref`."""
        rows = factors.float()[torch.arange(first, last) // self.height]
        return rows if rows.shape[1] == 1 else rows.repeat_interleave(self.width, dim=1)[:, :columns]


def joined(refs: Sequence[TensorRef]) -> TensorRef:
    """The rows of `refs`, parts of one file and alike in all but their number of rows and their scales, one after the
    other. Raises InvalidCheckpoint if they are stored in several types."""
    first, height = refs[0], sum(ref.shape[0] for ref in refs)
    if any((ref.dtype, ref.packing) != (first.dtype, first.packing) for ref in refs):
        raise InvalidCheckpoint(f"{first.file}: parts of one layer are stored in several types; take another file")
    return replace(first, spans=tuple(span for ref in refs for span in ref.spans), shape=(height, *first.row_shape))
