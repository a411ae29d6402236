"""How blocks come to the device while others compute: to stay, or through a ring of memory that they share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, repeat, takewhile
from typing import NamedTuple

import torch

from lightx2v.weights.device import Device, Moment
from lightx2v.weights.host import Source
from lightx2v.weights.layout import Entry, Unit
from lightx2v.weights.ring_allocator import RingAllocator


def ring_bytes(blocks: Sequence[Unit], ahead: int) -> int:
    """What a ring takes so that the link need not pause: the largest block, which is in use; of those after it what the
    link carries meanwhile, `ahead`, and half as much again, because they do not come evenly, but no more than another
    block, nor than all; and one state, for which there may be no room left before the end.
    Of a given memory, more for the ring is less for what stays.
    """
    largest = max((unit.nbytes for unit in blocks), default=0)
    state = max((entry.stride for unit in blocks for entry in unit.entries), default=0)
    return min(largest + min(3 * ahead // 2, largest), sum(unit.nbytes for unit in blocks)) + state


class Spot(NamedTuple):
    """Where in the ring a state comes to lie, and when what lay there has been used."""

    start: int
    after: Moment


@dataclass(slots=True)
class Passage:
    """A unit of which all states so far have been sent that have a spot."""

    unit: Unit
    arrived: Moment
    mark: int = 0
    spots: list[Spot] = field(default_factory=list)


class Ring:
    """Sends `blocks` in their order of use, those with a home in `homes` once and to stay, the others `passes` times,
    through `nbytes` of memory, state by state as room is left.

    A copy waits on the device for the last use of what it replaces and the block for its copies; the host waits for
    neither. What is used in another order than announced is still right, only not ahead. When what is at home arrives
    is noted in `arrivals`, which outlives the ring: nobody waits for it before its use.

    Raises OutOfMemory without that memory.
    """

    def __init__(
        self,
        blocks: Sequence[Unit],
        homes: Mapping[str, torch.Tensor],
        passes: int,
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
        passing = [unit for unit in blocks if unit.name not in homes] if passes else []
        first = [unit for unit in blocks if unit.name in homes or passes]
        self._due = deque(chain(first, *repeat(passing, passes - 1)))
        self._allocator = RingAllocator(nbytes)
        self._left: deque[tuple[int, Moment]] = deque()
        self.memory = device.allocate(nbytes if passing else 0)
        self._start = self._after = self._arrived = device.now()
        try:
            self._advance()
        except BaseException:
            self.close()
            raise

    def settle(self, unit: Unit) -> None:
        """What is launched next finds `unit` at its home."""
        if unit.name in self._homes:
            self._send_home(unit)
        if (arrived := self._arrivals.pop(unit.name, None)) is not None:
            self._device.wait(arrived)

    def enter(self, unit: Unit) -> list[int]:
        """Where in `memory` each of its states begins, for whatever is launched until `leave`."""
        self._skip(takewhile(lambda passage: passage.unit.name != unit.name, list(self._ahead.values())))
        if unit.name not in self._ahead:
            self._bring(unit)
        self._used = self._ahead.pop(unit.name)
        self._device.wait(self._used.arrived)
        return [spot.start for spot in self._used.spots]

    def leave(self) -> None:
        """The block has been launched; its memory is for others as soon as it has computed."""
        if self._used is not None:
            self._left.append((self._used.mark, self._device.now()))
            self._used = None
            self._advance()

    def close(self) -> Iterable[str]:
        """Gives up the memory, in the order of the device's work; nobody else may hold a view of it. The names of those
        that were to stay and have not been sent."""
        self._device.wait(self._arrived)
        self._ahead.clear()
        self._left.clear()
        self._coming = self._used = None
        self._device.free(self.memory)
        del self.memory
        return self._homes.keys()

    def _advance(self) -> None:
        """What has a home does not overtake what waits for room: it is used later."""
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
        """As much of it as there is room for; whether that is all."""
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
        """One for each, until no block that has been used has left any more room."""
        for entry in entries:
            while (start := self._allocator.take(entry.stride)) is None:
                if not self._left:
                    return
                mark, self._after = self._left.popleft()
                self._allocator.give(mark)
            yield Spot(start, self._after)

    def _send(self, coming: Passage, source: torch.Tensor, spots: Sequence[Spot]) -> None:
        """What lies together on both sides and may come at the same moment is one copy."""
        placed = zip(coming.unit.entries[len(coming.spots) :], spots, strict=False)
        for (shift, after), run in groupby(placed, key=lambda pair: (pair[1].start - pair[0].offset, pair[1].after)):
            entries = [entry for entry, _ in run]
            begin, end = entries[0].offset, entries[-1].offset + entries[-1].stride
            there = self.memory[begin + shift : end + shift]
            coming.arrived = self._arrived = self._device.copy(source[begin:end], there, after)
        coming.spots += spots

    def _skip(self, passages: Iterable[Passage]) -> None:
        """They came before what is used now: they will come again when they are."""
        for passage in passages:
            del self._ahead[passage.unit.name]
            self._left.append((passage.mark, self._device.now()))

    def _bring(self, unit: Unit) -> None:
        """All of what is here in part or, out of turn, not at all; nothing is ahead of it."""
        if self._coming is None or self._coming[0].unit.name != unit.name:
            self._coming = None
            self._left.append((self._allocator.mark, self._device.now()))
            if unit in self._due:
                self._due.remove(unit)
            self._due.appendleft(unit)
        self._advance()
