"""What is set aside for a process on a GPU, by a driver that says what the test has it say."""

from __future__ import annotations

import os

import pytest

from deployments import context as module
from deployments.context import GRAIN, LATER_GROWTH, ProcessMemory

WEIGHTS = 1 << 30


class Driver:
    def __init__(self) -> None:
        self.held: dict[int, int] = {}

    def used(self) -> dict[int, int]:
        return self.held


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(module, "open_probe", lambda card_id: driver)
    return driver


def test_it_is_the_most_that_was_ever_seen_beside_weights(driver: Driver) -> None:
    context = ProcessMemory("card")
    for beside, expected in ((3 * GRAIN, 3), (3 * GRAIN + 1, 4), (2 * GRAIN, 4), (5 * GRAIN, 5)):
        driver.held = {os.getpid(): WEIGHTS + beside, 1: 7}
        assert context.at_rest(WEIGHTS) == expected * GRAIN + LATER_GROWTH


def test_nothing_is_known_where_the_driver_lists_other_pids(driver: Driver) -> None:
    driver.held = {1: WEIGHTS}
    assert ProcessMemory("card").at_rest(WEIGHTS) is None
