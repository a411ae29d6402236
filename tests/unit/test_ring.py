"""Streaming on a device whose copies arrive as late as they may and destroy what they replace as soon as they may."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightx2v.errors import OutOfMemory
from lightx2v.weights.device import CpuDevice, Moment
from lightx2v.weights.residence import Residence, spread
from lightx2v.weights.ring import SLOTS
from tests.unit.toy import WIDTH, Toy, expected, load_toy, write_toy

HIDDEN = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)
BLOCKS = 7


@dataclass(frozen=True, slots=True)
class Late(Moment):
    copies: int = 0


class LateDevice(CpuDevice):
    """A copy poisons its slab when it is issued, and delivers when somebody waits for it, after all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.issued: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.delivered = 0
        self.alive = self.most_alive = 0

    def allocate(self, nbytes: int) -> torch.Tensor:
        self.alive += nbytes
        self.most_alive = max(self.alive, self.most_alive)
        return super().allocate(nbytes)

    def free(self, slab: torch.Tensor) -> None:
        self.alive -= slab.nbytes
        super().free(slab)

    def copy(self, host: torch.Tensor, slab: torch.Tensor, after: Moment) -> Moment:
        self.h2d_bytes += host.nbytes
        slab.fill_(0xFF)
        self.issued.append((host, slab))
        return Late(copies=len(self.issued))

    def wait(self, moment: Moment) -> None:
        if isinstance(moment, Late):
            for host, slab in self.issued[self.delivered : moment.copies]:
                slab.copy_(host)
            self.delivered = max(self.delivered, moment.copies)


def load(tmp_path: Path) -> tuple[dict[str, torch.Tensor], LateDevice, Toy, Residence]:
    state = write_toy(tmp_path / "toy", BLOCKS)
    device = LateDevice()
    return state, device, *load_toy(tmp_path, device, BLOCKS)


@pytest.mark.parametrize("resident", range(BLOCKS + 1))
def test_blocks_pass_through_their_slots_ahead_of_the_compute(tmp_path: Path, resident: int) -> None:
    state, device, toy, residence = load(tmp_path)
    residence.place(sum(unit.nbytes for unit in residence.units[: 1 + resident]))
    placed, passes = residence.nbytes, 3
    ahead: list[int] = []
    toy.module.get_submodule("entry").register_forward_hook(lambda *_: ahead.append(len(device.issued)))
    with residence.running(residence.nbytes, passes):
        for _ in range(passes):
            assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))
    streamed = BLOCKS - resident
    assert len(device.issued) == 1 + resident + passes * streamed, "each is sent once a pass"
    assert ahead[0] == 1 + resident + min(SLOTS, streamed), "before the first block computes"
    assert device.alive == placed
    assert device.most_alive <= placed + residence.slot


def test_it_ends_in_good_order_when_a_run_ends_early(tmp_path: Path) -> None:
    state, device, toy, residence = load(tmp_path)
    residence.place(residence.layout.rest.nbytes)
    for _ in range(2):
        with residence.running(residence.nbytes, 5):
            assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))
        assert device.alive == residence.nbytes
        assert device.delivered == len(device.issued), "nothing is on its way to a slot that was given up"


def test_blocks_that_come_in_another_order_are_right(tmp_path: Path) -> None:
    _, _, toy, residence = load(tmp_path)
    residence.place(residence.layout.rest.nbytes)
    blocks = [toy.module.get_submodule(f"blocks.{index}") for index in range(BLOCKS)]
    with residence.running(residence.nbytes, 1):
        there = [block(HIDDEN) for block in blocks]
        back = [block(HIDDEN) for block in reversed(blocks)]
    for one, other in zip(there, reversed(back), strict=True):
        assert torch.equal(one, other)
        assert torch.isfinite(one).all()


@pytest.mark.parametrize("resident", range(1, BLOCKS + 1))
def test_all_that_comes_comes_in_its_order_of_use(tmp_path: Path, resident: int) -> None:
    """Those that stay among those that pass, so that the first block need not wait for the last one's bytes."""
    state, device, toy, residence = load(tmp_path)
    limit = sum(unit.nbytes for unit in residence.units[: 1 + resident])
    with residence.running(limit, 2):
        for _ in range(2):
            assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))
    offsets = [host.data_ptr() for host, _ in device.issued]
    assert offsets[: 1 + BLOCKS] == sorted(offsets[: 1 + BLOCKS])
    assert len(offsets) == 1 + BLOCKS + (BLOCKS - resident)
    assert residence.nbytes == limit


def test_what_came_to_stay_is_there_when_a_run_ends_before_its_use(tmp_path: Path) -> None:
    state, device, toy, residence = load(tmp_path)
    limit = sum(unit.nbytes for unit in residence.units[:5])
    with residence.running(limit, 1):
        pass
    assert device.delivered == len(device.issued)
    with residence.running(limit, 1):
        assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))


@pytest.mark.parametrize("allowed", range(1, BLOCKS))
def test_without_room_nothing_is_taken(tmp_path: Path, allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, device, _, residence = load(tmp_path)
    left = iter([None] * allowed)

    def allocate(nbytes: int) -> torch.Tensor:
        if next(left, "none") == "none":
            raise OutOfMemory("no more")
        return LateDevice.allocate(device, nbytes)

    monkeypatch.setattr(device, "allocate", allocate)
    limit = sum(unit.nbytes for unit in residence.units[:5])
    with pytest.raises(OutOfMemory), residence.running(limit, 1):
        pytest.fail("not reached")
    assert (device.alive, residence.nbytes) == (0, 0)


def test_what_is_not_resident_does_not_run_by_itself(tmp_path: Path) -> None:
    _, _, toy, residence = load(tmp_path)
    residence.place(residence.layout.rest.nbytes)
    with pytest.raises(RuntimeError, match=r"blocks\.0 is used outside"):
        toy.module(HIDDEN)


@given(st.integers(1, 70))
def test_every_prefix_lies_evenly(count: int) -> None:
    order = spread(range(count))
    assert sorted(order) == list(range(count))
    for taken in range(1, count + 1):
        streamed = sorted(set(range(count)) - set(order[:taken]))
        longest = max((len(run) for run in runs(streamed)), default=0)
        assert longest <= 2 * (-(-len(streamed) // taken)) + 1


def runs(numbers: list[int]) -> list[list[int]]:
    """Stretches of consecutive numbers."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1].append(number)
        else:
            found.append([number])
    return found
