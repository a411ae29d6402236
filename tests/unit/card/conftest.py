"""What the tests of the coordinator stand on. Around the ledger it waits, watches processes and carries messages."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from deployments.card import coordinator as module
from tests.unit.card.members import FakeCard, Processes


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> FakeCard:
    """A card of 100 bytes whose coordinators are open from the start."""
    fake = FakeCard()
    monkeypatch.setattr(module, "open_probe", lambda card_id: fake)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    return fake


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Starts processes that do nothing, and ends them."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "600"]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
