"""How blocks come to the device while others compute: to stay, or through slots that they share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import NamedTuple

import torch

from lightx2v.errors import OutOfMemory
from lightx2v.weights.device import Device, Moment
from lightx2v.weights.host import Source
from lightx2v.weights.layout import Unit

SLOTS = 2
"""While one block computes the next one arrives."""


class Ring:
    """Sends `blocks` in their order of use, those with a home in `homes` once and to stay, the others `passes` times,
    each into the slot that is free first.

    A copy waits on the device for the last use of its slot and the block for its copy; the host waits for neither. What
    is used in another order than announced is still right, only not ahead. When what is at home arrives is noted in
    `arrivals`, which outlives the ring: nobody waits for it before its use.
    """

    def __init__(
        self,
        blocks: Sequence[Unit],
        homes: Mapping[str, torch.Tensor],
        passes: int,
        source: Source,
        device: Device,
        arrivals: dict[str, Moment],
    ) -> None:
        self._source, self._device = source, device
        self._stays, self._homes = frozenset(homes), dict(homes)
        self._arrivals = arrivals
        self._ahead: dict[str, Ahead] = {}
        self._used: torch.Tensor | None = None
        passing = [unit for unit in blocks if unit.name not in homes] if passes else []
        first = [unit for unit in blocks if unit.name in homes or passes]
        self._due = deque(chain(first, *repeat(passing, passes - 1)))
        self._slots = _allocate(device, min(SLOTS, len(passing)), max((unit.nbytes for unit in passing), default=0))
        self._start = device.now()
        self._free = deque((slot, self._start) for slot in self._slots)
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

    def enter(self, unit: Unit) -> torch.Tensor:
        """The slot that holds `unit` for whatever is launched until `leave`."""
        if unit.name not in self._ahead:
            self._bring(unit)
        _, self._used, arrived = self._ahead.pop(unit.name)
        self._device.wait(arrived)
        return self._used

    def leave(self) -> None:
        """The block has been launched; its slot is for another as soon as it has computed."""
        if self._used is not None:
            self._free.append((self._used, self._device.now()))
            self._used = None
            self._advance()

    def close(self) -> Iterable[str]:
        """Gives up the slots, in the order of the device's work; nobody else may hold a view of one. The names of those
        that were to stay and have not been sent."""
        free, ahead = (moment for _, moment in self._free), (unit.arrived for unit in self._ahead.values())
        for moment in chain(free, ahead):
            self._device.wait(moment)
        self._ahead.clear()
        self._free.clear()
        self._used = None
        while self._slots:
            self._device.free(self._slots.pop())
        return self._homes.keys()

    def _advance(self) -> None:
        """What has a home does not overtake what waits for a slot: it is used later."""
        while self._due:
            unit = self._due[0]
            if unit.name in self._homes:
                self._send_home(unit)
            elif unit.name not in self._stays:
                if not self._free or unit.name in self._ahead:
                    return
                self._send_through(unit)
            self._due.popleft()

    def _send_through(self, unit: Unit) -> None:
        slot, after = self._free.popleft()
        arrived = self._device.copy(self._source.unit(unit), slot[: unit.nbytes], after)
        self._ahead[unit.name] = Ahead(unit, slot, arrived)

    def _send_home(self, unit: Unit) -> None:
        self._arrivals[unit.name] = self._device.copy(self._source.unit(unit), self._homes[unit.name], self._start)
        del self._homes[unit.name]

    def _bring(self, unit: Unit) -> None:
        """Out of turn; if no slot is free, in the place of what is used last of all that came ahead."""
        if unit in self._due:
            self._due.remove(unit)
        if not self._free:
            _, (last, slot, arrived) = self._ahead.popitem()
            self._free.append((slot, arrived))
            self._due.appendleft(last)
        self._send_through(unit)


class Ahead(NamedTuple):
    """A unit that is on its way to a slot or waits there."""

    unit: Unit
    slot: torch.Tensor
    arrived: Moment


def _allocate(device: Device, count: int, nbytes: int) -> list[torch.Tensor]:
    """All or none. Raises OutOfMemory."""
    slots: list[torch.Tensor] = []
    try:
        slots.extend(device.allocate(nbytes) for _ in range(count))
    except OutOfMemory:
        for slot in slots:
            device.free(slot)
        raise
    return slots
