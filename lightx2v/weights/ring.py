"""How blocks come to the device while others compute: to stay, or through slots that they share."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain, repeat

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
    is used in another order than announced is still right, only not ahead.
    """

    def __init__(
        self,
        blocks: Sequence[Unit],
        homes: Mapping[str, torch.Tensor],
        passes: int,
        source: Source,
        device: Device,
    ) -> None:
        self._source, self._device = source, device
        self._stays, self._homes = frozenset(homes), dict(homes)
        self._arrivals: dict[str, Moment] = {}
        self._ahead: deque[tuple[Unit, torch.Tensor, Moment]] = deque()
        self._used: torch.Tensor | None = None
        passing = [unit for unit in blocks if unit.name not in homes] if passes else []
        first = [unit for unit in blocks if unit.name in homes or passes]
        self._due = deque(chain(first, *repeat(passing, passes - 1)))
        self._slots = _allocate(device, min(SLOTS, len(passing)), max((unit.nbytes for unit in passing), default=0))
        self._start = device.now()
        self._free = deque((slot, self._start) for slot in self._slots)
        self._advance()

    def settle(self, unit: Unit) -> None:
        """What is launched next finds `unit` at its home."""
        if unit.name in self._homes:
            self._send_home(unit)
        if (arrived := self._arrivals.pop(unit.name, None)) is not None:
            self._device.wait(arrived)

    def enter(self, unit: Unit) -> torch.Tensor:
        """The slot that holds `unit` for whatever is launched until `leave`."""
        if not self._ahead or self._ahead[0][0] is not unit:
            self._turn_to(unit)
        _, self._used, arrived = self._ahead.popleft()
        self._device.wait(arrived)
        return self._used

    def leave(self) -> None:
        """The block has been launched; its slot is for another as soon as it has computed."""
        if self._used is not None:
            self._free.append((self._used, self._device.now()))
            self._used = None
            self._advance()

    def close(self) -> None:
        """Gives up the slots, in the order of the device's work. Nobody else may hold a view of one."""
        self._send_all_home()
        for arrived in (*self._arrivals.values(), *(arrived for _, _, arrived in self._ahead)):
            self._device.wait(arrived)
        self._ahead.clear()
        self._free.clear()
        self._used = None
        while self._slots:
            self._device.free(self._slots.pop())

    def _advance(self) -> None:
        """What has a home does not overtake what waits for a slot: it is used later."""
        while self._due:
            unit = self._due[0]
            if unit.name in self._homes:
                self._send_home(unit)
            elif unit.name not in self._stays:
                if not self._free:
                    return
                self._send_through(unit)
            self._due.popleft()

    def _send_through(self, unit: Unit) -> None:
        slot, after = self._free.popleft()
        arrived = self._device.copy(self._source.unit(unit), slot[: unit.nbytes], after)
        self._ahead.append((unit, slot, arrived))

    def _send_home(self, unit: Unit) -> None:
        home = self._homes.pop(unit.name)
        self._arrivals[unit.name] = self._device.copy(self._source.unit(unit), home, self._start)

    def _send_all_home(self) -> None:
        for unit in self._due:
            if unit.name in self._homes:
                self._send_home(unit)

    def _turn_to(self, unit: Unit) -> None:
        self._send_all_home()
        self._free.extend((slot, arrived) for _, slot, arrived in self._ahead)
        self._ahead.clear()
        self._due = deque([unit])
        self._advance()


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
