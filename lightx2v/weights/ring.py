"""Blocks on their way to the device while others compute: to stay there, or through a ring of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import NamedTuple

import torch

from lightx2v.weights.device import Device, Moment
from lightx2v.weights.host_copy import Source
from lightx2v.weights.layout import Entry, Unit
from lightx2v.weights.ring_allocator import RingAllocator


def ring_bytes(blocks: Sequence[Unit], ahead: int) -> int:
    """Ring size in bytes: the largest block (in use), plus 1.5 x `ahead` of prefetch (arrivals are uneven), capped at a
    second block and at the total, plus the largest state, which may not fit before the wrap-around.

    `ahead`: bytes that the link carries while one block computes. A bigger ring leaves less memory for resident blocks.
    """
    largest = max((unit.nbytes for unit in blocks), default=0)
    state = max((entry.stride for unit in blocks for entry in unit.entries), default=0)
    return min(largest + min(3 * ahead // 2, largest), sum(unit.nbytes for unit in blocks)) + state


class Spot(NamedTuple):
    """The offset of a state in the ring, and the moment after which its memory is free."""

    start: int
    after: Moment


@dataclass(slots=True)
class Passage:
    """A unit on its way through the ring. Each state that has a spot has been sent."""

    unit: Unit
    arrived: Moment
    mark: int = 0
    spots: list[Spot] = field(default_factory=list)


class Ring:
    """Sends `blocks` to the device in their order of use, pass after pass. A block with a slab in `homes` is sent once,
    to stay there. If `streams`, any other is sent in every pass, through a ring of `nbytes` bytes, state by state as
    memory becomes free. Nothing is sent before the first `begin`.

    On the device, a copy waits for the last use of the memory that it replaces, and a block waits for its copies. The
    host waits for neither. Blocks that are used in another order than announced give the same result, but arrive late.
    `arrivals` receives the moments at which blocks arrive at home. It outlives the ring, because nothing waits for such
    a block before its use.

    Raises OutOfMemory if the device has no room for the ring.
    """

    def __init__(
        self,
        blocks: Sequence[Unit],
        homes: Mapping[str, torch.Tensor],
        streams: bool,
        nbytes: int,
        source: Source,
        device: Device,
        arrivals: dict[str, Moment],
    ) -> None:
        self._source, self._device = source, device
        self._stays, self._homes = frozenset(homes), dict(homes)
        self._arrivals = arrivals
        self._ahead: dict[str, Passage] = {}
        self._coming: tuple[Passage, torch.Tensor] | None = None
        self._used: Passage | None = None
        self._passing = [unit for unit in blocks if unit.name not in homes] if streams else []
        self._first = [unit for unit in blocks if unit.name in homes or streams]
        self._due: deque[Unit] = deque()
        self._begun = self._announced = 0
        self._allocator = RingAllocator(nbytes)
        self._left: deque[tuple[int, Moment]] = deque()
        self.memory = device.allocate(nbytes if self._passing else 0)
        self._start = self._after = self._arrived = device.now()

    def begin(self, another: bool) -> None:
        """Begins a pass: every block is about to be used. If `another` follows it, its blocks come as soon as there is
        room. Raises what the source raises."""
        self._begun += 1
        while self._announced < self._begun + another:
            self._due.extend(self._passing if self._announced else self._first)
            self._announced += 1
        self._advance()

    def settle(self, unit: Unit) -> None:
        """Makes what is launched next wait for `unit` at its home."""
        if unit.name in self._homes:
            self._send_home(unit)
        if (arrived := self._arrivals.pop(unit.name, None)) is not None:
            self._device.wait(arrived)

    def enter(self, unit: Unit) -> list[int]:
        """The offset in `memory` of each state of `unit`, for whatever is launched until `leave`."""
        self._skip(takewhile(lambda passage: passage.unit.name != unit.name, list(self._ahead.values())))
        if unit.name not in self._ahead:
            self._bring(unit)
        self._used = self._ahead.pop(unit.name)
        self._device.wait(self._used.arrived)
        return [spot.start for spot in self._used.spots]

    def leave(self) -> None:
        """Says that the block in use has been launched. Its memory is free as soon as it has computed."""
        if self._used is not None:
            self._left.append((self._used.mark, self._device.now()))
            self._used = None
            self._advance()

    def close(self) -> Iterable[str]:
        """Gives up the memory, in the order of the device's work; nobody else may hold a view of it. Returns the names
        of the blocks that were to stay and have not been sent."""
        self._device.wait(self._arrived)
        self._ahead.clear()
        self._left.clear()
        self._coming = self._used = None
        self._device.free(self.memory)
        del self.memory
        return self._homes.keys()

    def _advance(self) -> None:
        """Sends blocks until one finds no room. A block with a home does not overtake it, because it is used later."""
        while self._due:
            unit = self._due[0]
            if unit.name in self._homes:
                self._send_home(unit)
            elif unit.name not in self._stays and not self._send_through(unit):
                return
            self._due.popleft()

    def _send_home(self, unit: Unit) -> None:
        self._arrivals[unit.name] = self._device.copy(self._source.unit(unit), self._homes[unit.name], self._start)
        del self._homes[unit.name]

    def _send_through(self, unit: Unit) -> bool:
        """Sends as much of `unit` as there is room for. Returns whether that is all of it."""
        if unit.name in self._ahead:
            return False
        coming, source = self._coming = self._coming or (Passage(unit, self._arrived), self._source.unit(unit))
        self._send(coming, source, [*self._spots(unit.entries[len(coming.spots) :])])
        if len(coming.spots) < len(unit.entries):
            return False
        coming.mark = self._allocator.mark
        self._ahead[unit.name], self._coming = coming, None
        return True

    def _spots(self, entries: Iterable[Entry]) -> Iterator[Spot]:
        """A spot for each entry, until the memory of all used blocks is taken."""
        for entry in entries:
            while (start := self._allocator.take(entry.stride)) is None:
                if not self._left:
                    return
                mark, self._after = self._left.popleft()
                self._allocator.give(mark)
            yield Spot(start, self._after)

    def _send(self, coming: Passage, source: torch.Tensor, spots: Sequence[Spot]) -> None:
        """Copies states to their spots. States that are adjacent on both sides and wait for the same moment are one
        copy."""
        placed = zip(coming.unit.entries[len(coming.spots) :], spots, strict=False)
        for (shift, after), run in groupby(placed, key=lambda pair: (pair[1].start - pair[0].offset, pair[1].after)):
            entries = [entry for entry, _ in run]
            begin, end = entries[0].offset, entries[-1].offset + entries[-1].stride
            there = self.memory[begin + shift : end + shift]
            coming.arrived = self._arrived = self._device.copy(source[begin:end], there, after)
        coming.spots += spots

    def _skip(self, passages: Iterable[Passage]) -> None:
        """Frees blocks that arrived but were not used in their turn. Each is sent again if it is used later."""
        for passage in passages:
            del self._ahead[passage.unit.name]
            self._left.append((passage.mark, self._device.now()))

    def _bring(self, unit: Unit) -> None:
        """Sends all of a block that is used now and has arrived in part or not at all. Nothing else is in the ring."""
        if self._coming is None or self._coming[0].unit.name != unit.name:
            self._coming = None
            self._left.append((self._allocator.mark, self._device.now()))
            if unit in self._due:
                self._due.remove(unit)
            self._due.appendleft(unit)
        self._advance()
