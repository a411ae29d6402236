"""Streaming on a device whose copies arrive as late as they may and destroy what they replace as soon as they may."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightx2v.errors import InvalidCheckpoint, OutOfMemory
from lightx2v.weights.device import CpuDevice, Moment
from lightx2v.weights.layout import Unit
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


def test_what_came_to_stay_stays_when_a_run_ends_before_its_use(tmp_path: Path) -> None:
    state, device, toy, residence = load(tmp_path)
    limit = sum(unit.nbytes for unit in residence.units[:5])
    with residence.running(limit, 1):
        pass
    assert 0 < residence.nbytes == device.alive < limit, "some came, and what had not been sent did not"
    with residence.running(limit, 1):
        assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))


def test_a_run_does_not_wait_for_what_it_uses_later(tmp_path: Path) -> None:
    """Placed before it, and still on its way."""
    state, device, toy, residence = load(tmp_path)
    residence.place(residence.reachable)
    assert device.delivered == 0
    arrived: list[int] = []
    for index in range(BLOCKS):
        block = toy.module.get_submodule(f"blocks.{index}")
        block.register_forward_hook(lambda *_: arrived.append(device.delivered))
    with residence.running(residence.reachable, 1):
        assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))
    assert arrived == list(range(2, 2 + BLOCKS)), "the rest, the first block, and so on"


def test_what_is_dropped_on_its_way_has_arrived(tmp_path: Path) -> None:
    _, device, _, residence = load(tmp_path)
    residence.place(residence.reachable)
    residence.drop(0)
    assert (device.delivered, device.alive) == (len(device.issued), 0)


def test_only_what_is_used_is_sent_again(tmp_path: Path) -> None:
    """As of an autoencoder, of which a request may need the second half only."""
    _, device, toy, residence = load(tmp_path)
    residence.place(residence.layout.rest.nbytes)
    with residence.running(residence.nbytes, 1):
        toy.module.get_submodule("blocks.1")(HIDDEN)
    assert len(device.issued) == 1 + SLOTS + 1, "one more ahead, none twice"


def test_the_order_of_use_is_learned(tmp_path: Path) -> None:
    _, device, toy, residence = load(tmp_path)
    residence.place(residence.layout.rest.nbytes)
    blocks = [toy.module.get_submodule(f"blocks.{index}") for index in reversed(range(BLOCKS))]
    outputs, sent = [], []
    for _ in range(2):
        before = len(device.issued)
        with residence.running(residence.nbytes, 2):
            outputs.append([block(HIDDEN) for _ in range(2) for block in blocks])
        sent.append(len(device.issued) - before)
    assert all(map(torch.equal, *outputs))
    assert sent[1] == 2 * BLOCKS < sent[0]


@pytest.mark.parametrize("limit", [0, 3, BLOCKS])
@pytest.mark.parametrize("read", range(1, 1 + BLOCKS))
def test_a_source_that_fails_leaves_nothing_behind(
    tmp_path: Path, limit: int, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that never came is taken for resident."""
    state, device, toy, residence = load(tmp_path)
    reads, unit_of = iter(range(read)), residence._source.unit

    def unit(one: Unit) -> torch.Tensor:
        if next(reads, None) is None:
            raise InvalidCheckpoint("the file is gone")
        return unit_of(one)

    nbytes = sum(unit.nbytes for unit in residence.units[: 1 + limit])
    with monkeypatch.context() as gone:
        gone.setattr(residence._source, "unit", unit)
        with pytest.raises(InvalidCheckpoint), residence.running(nbytes, 2):
            toy.module(HIDDEN)
    assert device.alive == residence.nbytes
    with residence.running(nbytes, 1):
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
