"""The model that is served when none is named, as a newcomer meets it: is the picture what was asked for?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.pictures import made, png
from benchmarks.server import Server, serve
from training.gallery import LIST, drawn, fixed_list
from training.judge import judge
from training.tasks import Task


@pytest.fixture(scope="module")
def bundled() -> Iterator[Server]:
    with serve({"device": "cpu"}) as running:
        yield running


def ask(server: Server, task: Task) -> torch.Tensor:
    references = [png(drawn(scene)) for scene in task.references]
    answer = (
        server.edit(references, task.caption, seed=str(LIST))
        if references
        else server.generate(task.caption, seed=LIST)
    )
    return torch.from_numpy(made(answer).copy()).permute(2, 0, 1) / 255


@pytest.mark.parametrize("references", [0, 1, 2])
def test_pictures_of_the_gallery_are_right(bundled: Server, references: int) -> None:
    tasks = list(fixed_list(references, 2))
    verdicts = judge(torch.stack([ask(bundled, task) for task in tasks]), tasks)
    assert all(verdict.right for verdict in verdicts), verdicts
