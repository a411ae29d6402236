"""Jobs: what is known of one, how it ends, and how long it is kept."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from deployments.http import kept as module
from deployments.http.jobs import TASK, VIDEO, Job, Jobs
from deployments.http.kept import KEEP_SECONDS
from deployments.http.video_schema import video_body
from lightx2v.errors import DeadlineExceeded, LightError, TaskNotFound, TaskNotReady, VideoNotFound, VideoNotReady
from lightx2v.types import GenerateRequest, Progress, Size, VideoSpec

LONG_SECONDS = 60.0
REQUEST = GenerateRequest("request", "a cat", Size(64, 48), 4, 7, frames=9)

pytestmark = pytest.mark.timeout(30)


class Clock:
    """Seconds since the epoch, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(clock: Clock) -> Jobs:
    return Jobs(clock)


def start(jobs: Jobs, result: asyncio.Future[bytes]) -> Job:
    async def work() -> bytes:
        return await result

    return jobs.start(VIDEO, "wan", REQUEST, VideoSpec(9, 4, 16), work())


def begin(jobs: Jobs) -> tuple[Job, asyncio.Future[bytes]]:
    result = asyncio.get_running_loop().create_future()
    return start(jobs, result), result


async def ended(jobs: Jobs, result: bytes | Exception = b"mp4") -> Job:
    job, future = begin(jobs)
    if isinstance(result, bytes):
        future.set_result(result)
    else:
        future.set_exception(result)
    await asyncio.wait([job.task])
    return job


@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_a_failed_job_had_is_let_go(jobs: Jobs, cancelled: bool) -> None:
    pictures = Pictures()
    held, started = weakref.ref(pictures), asyncio.Event()

    async def work(pictures: Pictures) -> bytes:
        started.set()
        await asyncio.sleep(LONG_SECONDS if cancelled else 0)
        raise DeadlineExceeded(f"no file of {pictures}")

    job = jobs.start(VIDEO, "wan", REQUEST, VideoSpec(9, 4, 16), work(pictures))
    del pictures
    await started.wait()
    await (jobs.cancel(job) if cancelled else asyncio.wait([job.task]))
    gc.collect()
    assert job.status == "failed"
    assert held() is None


class Pictures:
    """What takes memory."""


def known(jobs: Jobs, *asked: Job) -> list[bool]:
    return [job in found(jobs, *asked) for job in asked]


def found(jobs: Jobs, *asked: Job) -> list[Job]:
    kept = []
    for job in asked:
        try:
            kept.append(jobs.find(VIDEO, job.id))
        except VideoNotFound:
            continue
    return kept


async def test_a_job_from_its_start_to_its_end(jobs: Jobs, clock: Clock) -> None:
    job, result = begin(jobs)
    assert (job.status, job.percent, job.ended_at) == ("queued", 0, None)
    with pytest.raises(VideoNotReady, match="queued"):
        _ = job.content
    job.advance(Progress(1, 4))
    assert (job.status, job.percent) == ("in_progress", 25)
    job.advance(Progress(4, 4))
    assert (job.status, job.percent) == ("in_progress", 99), "there is no file yet"
    clock.now += 5
    result.set_result(b"mp4")
    await asyncio.wait([job.task])
    assert (job.status, job.percent, job.content) == ("completed", 100, b"mp4")
    assert (job.ended_at, job.expires_at) == (1005, 1005 + KEEP_SECONDS)
    assert jobs.find(VIDEO, job.id) is job


async def test_a_stage_that_begins_anew_takes_no_progress_back(jobs: Jobs) -> None:
    job, _ = begin(jobs)
    for step in (0, 3, 0, 1):
        job.advance(Progress(step, 4))
    assert job.percent == 75
    await jobs.close()


@pytest.mark.parametrize("begun", [True, False])
async def test_a_cancelled_job_failed(jobs: Jobs, begun: bool) -> None:
    job, result = begin(jobs)
    if begun:
        await asyncio.sleep(0)
    await jobs.cancel(job)
    assert (job.status, video_body(job)["error"]["code"]) == ("failed", "cancelled")
    assert result.cancelled() is begun
    with pytest.raises(VideoNotFound, match="failed"):
        _ = job.content


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(DeadlineExceeded("too late"), "deadline_exceeded", "too late"), (OSError("/secret"), LightError.code, "failed")],
)
async def test_a_job_tells_why_it_failed(jobs: Jobs, error: Exception, code: str, message: str) -> None:
    """In the words in which a request that fails is answered: what is unexpected does not configure_logging."""
    body = video_body(await ended(jobs, error))
    assert (body["status"], body["error"]["code"], body["completed_at"]) == ("failed", code, None)
    assert message in body["error"]["message"]
    assert "/secret" not in body["error"]["message"]


async def test_cancelling_what_ended_changes_nothing(jobs: Jobs) -> None:
    job = await ended(jobs)
    await jobs.cancel(job)
    assert (job.status, job.content) == ("completed", b"mp4")


async def test_forgetting_ends_what_runs(jobs: Jobs) -> None:
    job, result = begin(jobs)
    await asyncio.sleep(0)
    await jobs.forget(job)
    assert result.cancelled()
    assert found(jobs, job) == []


async def test_closing_ends_all(jobs: Jobs) -> None:
    first, second = begin(jobs)[0], begin(jobs)[0]
    await jobs.close()
    assert [first.status, second.status] == ["failed", "failed"]


async def test_a_job_is_known_for_a_while_after_its_end(jobs: Jobs, clock: Clock) -> None:
    running, job = begin(jobs)[0], await ended(jobs)
    clock.now += KEEP_SECONDS - 1
    assert known(jobs, running, job) == [True, True]
    clock.now += 1
    assert known(jobs, running, job) == [True, False]
    await jobs.close()


async def test_the_oldest_that_ended_go_when_they_are_too_many(
    jobs: Jobs, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_COUNT", 2)
    running = begin(jobs)[0]
    made = []
    for _ in range(3):
        clock.now += 1
        made.append(await ended(jobs))
    assert known(jobs, running, *made) == [True, False, True, True]
    await jobs.close()


async def test_the_oldest_go_when_they_are_too_large(jobs: Jobs, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest stays however large it is: it was made for somebody who is still to fetch it."""
    monkeypatch.setattr(module, "MAX_NBYTES", 10)
    made = []
    for nbytes in (4, 5, 6, 11):
        clock.now += 1
        made.append(await ended(jobs, b"x" * nbytes))
        if nbytes == 6:
            assert known(jobs, *made) == [False, False, True]
    assert known(jobs, *made) == [False, False, False, True]


async def test_ids_are_not_to_be_guessed(jobs: Jobs) -> None:
    ids = {(await ended(jobs)).id for _ in range(20)}
    assert len(ids) == 20
    assert {len(one) for one in ids} == {len("video_") + 32}


async def test_a_picture_and_a_video_know_what_they_are(jobs: Jobs) -> None:
    async def work() -> bytes:
        return b""

    video, picture = (jobs.start(TASK, "wan", REQUEST, spec, work()) for spec in (VideoSpec(9, 4, 16), None))
    assert (video.media_type, video.seconds) == ("video/mp4", 0.5)
    assert (picture.media_type, picture.seconds) == ("image/png", 0)
    await jobs.close()


async def test_a_kind_of_job_does_not_know_those_of_another(jobs: Jobs) -> None:
    video, _ = begin(jobs)
    task = jobs.start(TASK, "wan", REQUEST, None, asyncio.sleep(LONG_SECONDS, b""))
    assert (jobs.of(VIDEO), jobs.of(TASK)) == ([video], [task])
    assert task.id.startswith("task_")
    with pytest.raises(TaskNotFound, match="there is no task"):
        jobs.find(TASK, video.id)
    with pytest.raises(VideoNotFound):
        jobs.find(VIDEO, task.id)
    with pytest.raises(TaskNotReady):
        _ = task.content
    await jobs.close()
    with pytest.raises(TaskNotFound, match="cancelled"):
        _ = task.content
