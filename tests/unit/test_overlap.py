"""A transformer's steps on a device that only keeps time: how much longer they take than what they compute or copy."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from lightx2v.stages.stage import OVERLAP_SHARE
from lightx2v.weights.device import CpuDevice, Moment
from lightx2v.weights.layout import Unit
from lightx2v.weights.placement_order import placement_order
from lightx2v.weights.ring import Ring, ring_bytes
from tests.unit.units import Memory

DOUBLE = [34, 34, 34, 34, 34, 34, 34, 34, 201, 101, 201, 101]
SINGLE = [302, 134]
KLEIN_9B = [DOUBLE] * 8 + [SINGLE] * 24
QWEN_IMAGE = [[19, 19, 19, 19, 19, 19, 19, 19, 75, 75, 75, 75, 57, 57]] * 60
Z_IMAGE = [[8, 29, 29, 29, 29, 79, 79, 79]] * 34
"""The states of every block in MB, of which a thousandth is moved here."""

SCALE = 1000
LINK = 55_000 * SCALE
"""Bytes per second."""
STEPS = 4


@dataclass(frozen=True, slots=True)
class At(Moment):
    seconds: float = 0.0


class Clock(CpuDevice):
    """The times of an engine that computes and of one that copies, each in the order in which it was told to."""

    def __init__(self) -> None:
        super().__init__()
        self.computed = self.copied = 0.0

    def copy(self, host: torch.Tensor, slab: torch.Tensor, after: Moment) -> Moment:
        assert isinstance(after, At)
        self.copied = max(self.copied, after.seconds) + host.nbytes / LINK
        return At(seconds=self.copied)

    def now(self) -> Moment:
        return At(seconds=self.computed)

    def wait(self, moment: Moment) -> None:
        assert isinstance(moment, At)
        self.computed = max(self.computed, moment.seconds)


@pytest.mark.parametrize(
    ("blocks", "step", "most"),
    [
        (KLEIN_9B, 0.125, 1.02),
        (KLEIN_9B, 0.2, 1.02),
        (KLEIN_9B, 0.43, 1.04),
        (QWEN_IMAGE, 0.4, 1.09),
        (QWEN_IMAGE, 0.5, 1.11),
        (QWEN_IMAGE, 1.0, 1.01),
    ],
)
def test_streaming_costs_little_more_than_the_longer_of_both(blocks: list[list[int]], step: float, most: float) -> None:
    """At every split of resident and streamed blocks. `step`: seconds that one computes; where all that streams is
    hidden just so, every pause shows."""
    memory = Memory([[SCALE * state for state in block] for block in blocks])
    order = placement_order([unit.nbytes for unit in memory.units])
    for resident in range(len(blocks)):
        streamed = {memory.units[index].name for index in order[resident:]}
        nbytes = sum(unit.nbytes for unit in memory.units if unit.name in streamed)
        bound = STEPS * max(step, nbytes / LINK)
        assert seconds(memory, streamed, step) <= most * bound, f"{resident} resident"


@pytest.mark.parametrize(
    ("blocks", "step", "most"), [(KLEIN_9B, 0.125, 1.01), (QWEN_IMAGE, 0.5, 1.04), (Z_IMAGE, 0.096, 1.01)]
)
def test_what_a_plan_takes_for_hidden_is(blocks: list[list[int]], step: float, most: float) -> None:
    """As much as that streams behind the computation, which takes hardly longer for it."""
    memory = Memory([[SCALE * state for state in block] for block in blocks])
    order = placement_order([unit.nbytes for unit in memory.units])
    for resident in range(len(blocks)):
        streamed = [memory.units[index] for index in order[resident:]]
        if sum(unit.nbytes for unit in streamed) <= OVERLAP_SHARE * step * LINK:
            taken = seconds(memory, {unit.name for unit in streamed}, step)
            assert taken <= most * STEPS * step, f"{resident} resident"


def seconds(memory: Memory, streamed: set[str], step: float) -> float:
    device, each = Clock(), step / len(memory.units)
    passing = [unit for unit in memory.units if unit.name in streamed]
    ring = Ring(passing, {}, True, ring_bytes(memory.units, int(each * LINK)), memory, device, {})
    for index in range(STEPS):
        ring.begin(another=index + 1 < STEPS)
        for unit in memory.units:
            compute(ring, unit, unit.name in streamed, device, each)
    return device.computed


def compute(ring: Ring, unit: Unit, is_streamed: bool, device: Clock, each: float) -> None:
    if is_streamed:
        ring.enter(unit)
    device.computed += each
    if is_streamed:
        ring.leave()
