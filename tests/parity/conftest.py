from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoints import write_klein


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_klein(tmp_path_factory.mktemp("distilled"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Undistilled, in many files, with a head of its own."""
    return write_klein(tmp_path_factory.mktemp("base"), distilled=False, max_shard_size="300KB", tied=False)
