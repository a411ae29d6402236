"""The first pictures of a model, made at the start and thrown away: what is compiled or loaded when it is first used
costs no user time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace

from PIL import Image

from deployments.graph import Graph
from lightx2v.core import GenerateRequest, Reference, Size
from lightx2v.models.reference import make_reference
from lightx2v.models.request import planning_request
from lightx2v.models.spec import ModelSpec

PROMPT = "a grey picture"
"""Of several tokens: what is compiled for a single one, which an empty prompt is to Wan, is of no use to others."""

STEPS = 3
"""Enough for both transformers of a model that has two, up to a flow shift of 12."""

SECONDS = 1800.0
GREY = (127, 127, 127)

log = logging.getLogger(__name__)


class Rehearsal:
    """Of one model. It fails when its requests do, and then says so in the log: others may still be served."""

    def __init__(self, spec: ModelSpec, graph: Graph) -> None:
        self._spec, self._graph = spec, graph
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def over(self) -> None:
        """Returns when it has ended, if it was ever begun."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for request, references in self._requests():
                    tasks.create_task(self._graph.generate([request], references, SECONDS))
        except* Exception as group:
            log.error("the rehearsal failed, so the first requests may be slow", exc_info=group)

    def _requests(self) -> Iterator[tuple[GenerateRequest, list[Reference]]]:
        """One as it is planned for, and one with a reference where a model can do without."""
        spec = self._spec
        frames = spec.clip.multiple + 1 if spec.clip else 1
        planned = replace(planning_request(spec), id="rehearsal", prompt=PROMPT, steps=STEPS, frames=frames)
        for count in sorted({spec.min_references, min(1, spec.max_references)}):
            references = [_blank(spec) for _ in range(count)]
            yield replace(planned, references=tuple(one.fitted.size for one in references)), references


def _blank(spec: ModelSpec) -> Reference:
    size: Size = spec.size
    return make_reference(Image.new("RGB", (size.width, size.height), GREY), spec)
