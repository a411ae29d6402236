"""A rehearsal that fails is over, and says of what; /health tells it as long as the server lives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deployments.rehearsal import Rehearsal
from lightx2v.checkpoint import read_spec
from lightx2v.config import EngineSettings
from lightx2v.errors import OutOfMemory


class Broken:
    """A graph that fails in mid-air."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def generate(self, *_: object) -> None:
        raise self._error


@pytest.mark.parametrize("error", [RuntimeError("no compiler"), OutOfMemory("a byte too many")])
async def test_it_says_why(checkpoint: Path, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    graph: Any = Broken(error)
    rehearsal = Rehearsal(read_spec(EngineSettings(model=str(checkpoint))), graph)
    rehearsal.start()
    for _ in range(2):
        assert str(error) in str(await rehearsal.over())
    assert caplog.text.count("the rehearsal failed") == 1
    assert str(error) in caplog.text
