"""Warms a model up: its first pictures are made at the start and thrown away, so that no user waits for code that is
compiled or loaded at first use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace

from PIL import Image

from deployments.serving.concurrency import gathered
from deployments.serving.deadline import Deadline
from deployments.serving.graph import Graph
from lightx2v.errors import LightError
from lightx2v.models.reference_image import make_reference
from lightx2v.models.request import planning_request
from lightx2v.models.spec import ModelSpec
from lightx2v.types import GenerateRequest, Reference, Size

PROMPT = "a grey picture"
"""Several tokens on purpose: torch specialises length 1 (Wan's empty prompt), and that code serves no other prompt."""

STEPS = 3
"""Enough for both transformers of a model that has two, up to a flow shift of 12."""

SECONDS = 1800.0
GREY = (127, 127, 127)

log = logging.getLogger(__name__)


class WarmUp:
    """The warm-up of one model. If its requests fail, the server still takes others."""

    def __init__(self, spec: ModelSpec, graph: Graph) -> None:
        self._spec, self._graph = spec, graph
        self._task: asyncio.Task[str | None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def over(self) -> str | None:
        """Waits for the end of the warm-up, if it was started. Returns why it failed, or None."""
        return None if self._task is None else await asyncio.shield(self._task)

    async def _run(self) -> str | None:
        deadline = Deadline.after(SECONDS)
        try:
            async with deadline.enforced():
                await gathered(self._graph.generate([one], pictures, deadline) for one, pictures in self._requests())
        except Exception as error:  # any failure: the server lives on, and /health reports it
            log.exception("the warm-up failed")
            return str(error) if isinstance(error, LightError) else f"{type(error).__name__}: {error}"
        return None

    def _requests(self) -> Iterator[tuple[GenerateRequest, list[Reference]]]:
        """One request with the fewest references, and one with a reference if the model can do both."""
        spec = self._spec
        frames = spec.video.multiple + 1 if spec.video else 1
        planned = replace(planning_request(spec), id="warm-up", prompt=PROMPT, steps=STEPS, frames=frames)
        for count in sorted({spec.min_references, min(1, spec.max_references)}):
            references = [_blank(spec) for _ in range(count)]
            yield replace(planned, references=tuple(one.fitted.size for one in references)), references


def _blank(spec: ModelSpec) -> Reference:
    size: Size = spec.size
    return make_reference(Image.new("RGB", (size.width, size.height), GREY), spec)
