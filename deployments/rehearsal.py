"""The first pictures of a model, made at the start and thrown away: what is compiled or loaded when it is first used
costs no user time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace

from PIL import Image

from deployments.concurrency import gathered
from deployments.deadline import Deadline
from deployments.graph import Graph
from lightx2v.core import GenerateRequest, Reference, Size
from lightx2v.errors import LightError
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
    """The warm-up of one model. It fails when its requests do; others may still be asked for."""

    def __init__(self, spec: ModelSpec, graph: Graph) -> None:
        self._spec, self._graph = spec, graph
        self._task: asyncio.Task[str | None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def over(self) -> str | None:
        """Waits for its end, if it was ever begun. Returns why it failed, or None."""
        return None if self._task is None else await asyncio.shield(self._task)

    async def _run(self) -> str | None:
        deadline = Deadline.after(SECONDS)
        try:
            async with deadline.enforced():
                await gathered(self._graph.generate([one], pictures, deadline) for one, pictures in self._requests())
        except Exception as error:  # whatever a first request fails of, the server lives on and /health tells it
            log.exception("the rehearsal failed")
            return str(error) if isinstance(error, LightError) else f"{type(error).__name__}: {error}"
        return None

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
