"""What a dead process had is kept for its successor, and only for so long."""

from __future__ import annotations

import mmap
import uuid
from collections.abc import Iterator

import pytest

from deployments.card.host_copies import HostCopies
from lightx2v.weights.shared_memory import share
from tests.unit.holder import Holder, holding

NBYTES = 5000


@pytest.fixture
def name() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def other(name: str) -> Iterator[Holder]:
    with holding(name, NBYTES) as process:
        process.fill()
        yield process


def never(memory: mmap.mmap) -> None:
    pytest.fail("it was filled again")


def again(memory: mmap.mmap) -> None:
    memory[:] = b"\2" * NBYTES


def test_a_successor_finds_what_the_dead_had(name: str, other: Holder) -> None:
    keeper = HostCopies()
    keeper.hold(other.process.pid)
    keeper.hold(other.process.pid)
    other.kill()
    assert bytes(share(name, NBYTES, never)) == b"\1" * NBYTES


def test_what_is_in_use_is_not_released(name: str, other: Holder) -> None:
    keeper = HostCopies()
    keeper.hold(other.process.pid)
    keeper.release([other.process.pid])
    other.kill()
    assert bytes(share(name, NBYTES, never)) == b"\1" * NBYTES


def test_what_nobody_uses_is_released(name: str, other: Holder) -> None:
    keeper = HostCopies()
    keeper.hold(other.process.pid)
    other.kill()
    keeper.release([other.process.pid])
    assert bytes(share(name, NBYTES, again)) == b"\2" * NBYTES
