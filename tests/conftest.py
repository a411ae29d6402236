"""Tests are marked by the folder that they lie in. What several folders need is here, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lightx2v.pipeline import Pipeline
    from tests.server import Server

ROOT = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(item.path.relative_to(ROOT).parts[0])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model; its default size is 64x64."""
    from tests.checkpoints import write_klein

    return write_klein(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="session")
def pipeline(checkpoint: Path) -> Pipeline:
    """That model in this process: what every served picture must equal to the bit."""
    from lightx2v.config import EngineSettings
    from lightx2v.pipeline import Pipeline

    return Pipeline(EngineSettings(model=str(checkpoint), dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def server(checkpoint: Path) -> Iterator[Server]:
    """One server for all tests that leave it as they found it."""
    from tests.server import serve

    arguments = {"model": str(checkpoint), "name": "klein", "dtype": "float32", "max_queue": 8, "max_replicas": 1}
    with serve(arguments) as running:
        yield running
