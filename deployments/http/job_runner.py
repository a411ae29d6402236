"""The work of jobs: a job is admitted and checked in full, and then made while its caller does not wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from deployments.card.lookup import progress_of
from deployments.http.jobs import Job, Jobs, Kind
from deployments.http.uploads import Uploads
from deployments.serving.admission import Asker, Place
from deployments.serving.concurrency import Threads
from deployments.serving.served_models import Model, ServedModels
from lightx2v.media.encode import encode
from lightx2v.types import GenerateRequest, Reference, Size

ENCODERS = 1
"""Files of jobs that are compressed at the same time, each on all cores."""


class JobRunner:
    """Starts the jobs of one application and follows their progress. `jobs` holds them."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models
        self.jobs = Jobs()
        self._encoders = Threads(ENCODERS)

    async def start(
        self,
        kind: Kind,
        model: Model,
        asker: Asker,
        uploads: Uploads,
        drafted: Sequence[Size],
        to_request: Callable[[Sequence[Size]], GenerateRequest],
    ) -> Job:
        """Starts a job, which keeps its place in the queue until it ends. `to_request` gives the checked request for
        the sizes of the fitted pictures in `uploads`; those in `drafted` stand for them until they are decoded. Raises
        QueueFull or InvalidRequest."""
        with ExitStack() as stack:
            place = stack.enter_context(model.admission.admitted(asker, model.work([to_request(drafted)])))
            async with place.deadline.enforced():
                references = await self._models.fitted(model, uploads.pictures, uploads.mask)
                request = to_request([reference.fitted.size for reference in references])
                place.resize(model.work([request]))
                notices = await model.notices(request)
            video = model.spec.video if request.frames > 1 else None
            work = self._make(model, request, references, place)
            job = self.jobs.start(kind, model.id, request, video, work, notices, place)
            leave = stack.pop_all().close
            job.task.add_done_callback(lambda _: leave())
        return job

    async def look(self, job: Job) -> None:
        """Asks the cards for the progress of a job that has not ended."""
        if job.ended_at is None and (progress := await progress_of(job.request.id)) is not None:
            job.advance(progress)

    async def close(self) -> None:
        """Cancels all jobs."""
        await self.jobs.close()

    async def _make(
        self, model: Model, request: GenerateRequest, references: Sequence[Reference], place: Place
    ) -> bytes:
        async with place.making():
            (made,) = await model.graph.generate([request], references, place.deadline, place.rank)
            return await self._encoders.run(encode, made, "png")
