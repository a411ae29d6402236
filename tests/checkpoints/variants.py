"""Tiny random checkpoints as fixtures, and those that a test of all families runs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BUDGETS = {
    "distilled": 5_700_000,
    "dev": 5_700_000,
    "z_base": 6_400_000,
    "qwen_image": 5_900_000,
    "edit_2511": 14_900_000,
    "wan": 10_550_000,
    "wan_experts": 10_550_000,
    "wan_i2v": 10_550_000,
    "wan_i2v_experts": 10_550_000,
    "wan_ti2v": 10_550_000,
    "wan_clip": 10_750_000,
}
"""By the names of their fixtures, too few bytes for all of a stage at once."""


def written(writer: str, folder: str, **options: Any) -> Any:
    """A fixture: the path of a checkpoint in a `folder` of its own, once per session. `writer`: a `module:function` of
    this package, imported when the fixture is asked for, because what writes most of them takes seconds to import."""

    @pytest.fixture(scope="session")
    def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
        module, _, function = writer.partition(":")
        write = getattr(import_module(f"tests.checkpoints.{module}"), function)
        path: Path = write(tmp_path_factory.mktemp(folder), **options)
        return path

    return checkpoint
