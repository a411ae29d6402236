"""Streaming on a device whose copies arrive as late as they may and destroy what they replace as soon as they may."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightx2v.errors import InvalidCheckpoint, OutOfMemory
from lightx2v.weights.device import CpuDevice, Moment
from lightx2v.weights.layout import ALIGNMENT, Unit, view
from lightx2v.weights.ring import Ring, ring_bytes
from lightx2v.weights.weight_residency import WeightResidency
from tests.unit.toy import WIDTH, Toy, expected, load_toy, one_pass, passes, write_toy
from tests.unit.units import Memory

HIDDEN = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)
BLOCKS = 7
BLOCK = 5 * ALIGNMENT
"""Bytes of one: four of a weight, one of a bias."""


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


def load(tmp_path: Path, ahead: int = 0) -> tuple[dict[str, torch.Tensor], LateDevice, Toy, WeightResidency]:
    state = write_toy(tmp_path / "toy", BLOCKS)
    device = LateDevice()
    return state, device, *load_toy(tmp_path, device, BLOCKS, ahead=ahead)


@pytest.mark.parametrize("ahead", [0, BLOCK // 2, BLOCK, 9 * BLOCK])
@pytest.mark.parametrize("resident", range(BLOCKS + 1))
def test_blocks_pass_through_the_ring_ahead_of_the_compute(tmp_path: Path, resident: int, ahead: int) -> None:
    state, device, toy, residence = load(tmp_path, ahead)
    residence.place(sum(unit.nbytes for unit in residence.units[: 1 + resident]))
    placed, times, streamed = residence.nbytes, 3, (BLOCKS - resident) * BLOCK
    came: list[int] = []
    toy.module.get_submodule("entry").register_forward_hook(lambda *_: came.append(device.h2d_bytes))
    with residence.running(residence.nbytes):
        for _ in passes(residence, times):
            assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))
    assert device.h2d_bytes == placed + times * streamed, "each is sent once a pass"
    assert came[0] - placed >= min(BLOCK + min(ahead, BLOCK), streamed), "before the first block computes"
    assert device.alive == placed
    assert device.most_alive <= placed + residence.slot


def test_while_a_block_computes_a_part_of_the_next_one_comes(tmp_path: Path) -> None:
    """As much as the link carries meanwhile need not be a whole block; the rest comes once its place is free."""
    state, device, toy, residence = load(tmp_path)
    residence.place(residence.layout.rest.nbytes)
    came: list[int] = []
    for index in range(BLOCKS):
        toy.module.get_submodule(f"blocks.{index}").register_forward_pre_hook(lambda *_: came.append(device.h2d_bytes))
    with one_pass(residence, residence.nbytes):
        assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))
    ahead = [(nbytes - residence.nbytes) / BLOCK - used for used, nbytes in enumerate(came, start=1)]
    assert residence.slot < 2 * BLOCK
    assert any(0 < share < 1 for share in ahead)
    assert sum(share > 0 for share in ahead) > BLOCKS // 2


def test_it_ends_in_good_order_when_a_run_ends_early(tmp_path: Path) -> None:
    state, device, toy, residence = load(tmp_path)
    residence.place(residence.layout.rest.nbytes)
    for _ in range(2):
        with residence.running(residence.nbytes):
            residence.begin(another=True)
            assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))
        assert device.alive == residence.nbytes
        assert device.delivered == len(device.issued), "nothing is on its way to a slot that was given up"


def test_blocks_that_come_in_another_order_are_right(tmp_path: Path) -> None:
    _, _, toy, residence = load(tmp_path)
    residence.place(residence.layout.rest.nbytes)
    blocks = [toy.module.get_submodule(f"blocks.{index}") for index in range(BLOCKS)]
    with one_pass(residence, residence.nbytes):
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
    with residence.running(limit):
        for _ in passes(residence, 2):
            assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))
    first = residence.reachable
    sent = list(accumulate((host.nbytes for host, _ in device.issued), initial=0))
    offsets = [host.data_ptr() for (host, _), before in zip(device.issued, sent, strict=False) if before < first]
    assert offsets == sorted(offsets)
    assert device.h2d_bytes == first + (BLOCKS - resident) * BLOCK
    assert residence.nbytes == limit


def test_what_came_to_stay_stays_when_a_run_ends_before_its_use(tmp_path: Path) -> None:
    state, device, toy, residence = load(tmp_path)
    limit = sum(unit.nbytes for unit in residence.units[:5])
    with one_pass(residence, limit):
        pass
    assert 0 < residence.nbytes == device.alive < limit, "some came, and what had not been sent did not"
    with one_pass(residence, limit):
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
    with one_pass(residence, residence.reachable):
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
    with one_pass(residence, residence.nbytes):
        toy.module.get_submodule("blocks.1")(HIDDEN)
    sent = [host.data_ptr() for host, _ in device.issued]
    assert len(sent) == len(set(sent)), "none twice"
    assert device.h2d_bytes <= residence.nbytes + 2 * BLOCK + residence.slot


def test_the_order_of_use_is_learned(tmp_path: Path) -> None:
    _, device, toy, residence = load(tmp_path)
    residence.place(residence.layout.rest.nbytes)
    blocks = [toy.module.get_submodule(f"blocks.{index}") for index in reversed(range(BLOCKS))]
    outputs, sent = [], []
    for _ in range(2):
        before = device.h2d_bytes
        with residence.running(residence.nbytes):
            outputs.append([block(HIDDEN) for _ in passes(residence, 2) for block in blocks])
        sent.append(device.h2d_bytes - before)
    assert all(map(torch.equal, *outputs))
    assert sent[1] == 2 * BLOCKS * BLOCK < sent[0]


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
        with pytest.raises(InvalidCheckpoint), one_pass(residence, nbytes):
            toy.module(HIDDEN)
    assert device.alive == residence.nbytes
    with one_pass(residence, nbytes):
        assert torch.equal(toy.module(HIDDEN), expected(state, HIDDEN))


@pytest.mark.parametrize("allowed", range(1, 6))
def test_without_room_nothing_is_taken(tmp_path: Path, allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, device, _, residence = load(tmp_path)
    left = iter([None] * allowed)

    def allocate(nbytes: int) -> torch.Tensor:
        if next(left, "none") == "none":
            raise OutOfMemory("no more")
        return LateDevice.allocate(device, nbytes)

    monkeypatch.setattr(device, "allocate", allocate)
    limit = sum(unit.nbytes for unit in residence.units[:5])  # which stay, and the ring beside them
    with pytest.raises(OutOfMemory), residence.running(limit):
        pytest.fail("not reached")
    assert (device.alive, residence.nbytes) == (0, 0)


def test_what_is_not_resident_does_not_run_by_itself(tmp_path: Path) -> None:
    _, _, toy, residence = load(tmp_path)
    residence.place(residence.layout.rest.nbytes)
    with pytest.raises(RuntimeError, match=r"blocks\.0 is used outside"):
        toy.module(HIDDEN)


@dataclass(frozen=True, slots=True)
class Launched(Moment):
    reads: int = 0


class StrictDevice(LateDevice):
    """Refuses a copy that does not wait for what still reads the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[int, int]] = []

    def launch(self, state: torch.Tensor) -> None:
        """What reads it, after all that was launched before."""
        self.reads.append((state.data_ptr(), state.data_ptr() + state.nbytes))

    def now(self) -> Moment:
        return Launched(reads=len(self.reads))

    def copy(self, host: torch.Tensor, slab: torch.Tensor, after: Moment) -> Moment:
        assert isinstance(after, Launched)
        begin, end = slab.data_ptr(), slab.data_ptr() + slab.nbytes
        assert not any(first < end and begin < last for first, last in self.reads[after.reads :])
        return super().copy(host, slab, after)


STATES = st.integers(1, 5 * ALIGNMENT)


@given(
    st.lists(st.lists(STATES, min_size=1, max_size=5), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(0, 6 * ALIGNMENT),
    st.data(),
)
def test_whatever_is_used_is_there(blocks: list[list[int]], times: int, ahead: int, data: st.DataObject) -> None:
    """Of any sizes, in any order, as often as announced or not."""
    source, device = Memory(blocks), StrictDevice()
    ring = Ring(source.units, {}, True, ring_bytes(source.units, ahead), source, device, {})
    in_turn = source.units if data.draw(st.booleans()) else []
    for index in range(times):
        ring.begin(another=index + 1 < times)
        for unit in in_turn:
            use(ring, unit, source, device)
    for unit in data.draw(st.lists(st.sampled_from(source.units), max_size=12)):
        use(ring, unit, source, device)
    if in_turn:
        assert device.h2d_bytes >= times * sum(unit.nbytes for unit in source.units)
    ring.close()
    assert device.alive == 0


def use(ring: Ring, unit: Unit, source: Memory, device: StrictDevice) -> None:
    for entry, start in zip(unit.entries, ring.enter(unit), strict=True):
        there = view(ring.memory, entry, start)
        assert torch.equal(there, view(source.unit(unit), entry))
        device.launch(there)
    ring.leave()


class Fresh(Memory):
    """As from a disk: bytes that nobody else holds."""

    def __init__(self, blocks: list[list[int]]) -> None:
        super().__init__(blocks)
        self.read: list[weakref.ref[object]] = []

    def unit(self, unit: Unit) -> torch.Tensor:
        memory = super().unit(unit).numpy().copy()
        self.read.append(weakref.ref(memory))
        return torch.from_numpy(memory)


def test_what_has_been_sent_is_not_kept_on_the_host() -> None:
    source = Fresh([[ALIGNMENT, ALIGNMENT]] * 4)
    ring = Ring(source.units, {}, True, ring_bytes(source.units, 2 * ALIGNMENT), source, CpuDevice(), {})
    ring.begin(another=False)
    assert len(source.read) == 3
    assert sum(there() is not None for there in source.read) <= 1, "what is there in part"
    ring.close()
