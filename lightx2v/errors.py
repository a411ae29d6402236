"""The typed errors. A message says what is wrong, where, and what to do. `deployments` maps them to HTTP statuses."""

from __future__ import annotations

from typing import ClassVar


class LightError(Exception):
    """Base of all typed errors. It pickles by its arguments and attributes, so it survives a process border."""

    code: ClassVar[str] = "internal_error"


class InvalidRequest(LightError):
    """The caller's input is invalid; `param` names the field."""

    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


class PayloadTooLarge(LightError):
    """The body exceeds the limit; the bytes beyond it were not read."""

    code = "payload_too_large"


class OriginNotAllowed(LightError):
    """The request comes from a page of another site."""

    code = "origin_not_allowed"


class HostNotAllowed(LightError):
    """The `Host` is not a name of this server, as after DNS rebinding in a browser."""

    code = "host_not_allowed"


class ModelNotFound(LightError):
    """No model of that name is served here."""

    code = "model_not_found"


class PictureNotFound(LightError):
    """There is no picture file of that name: it has expired, or never existed."""

    code = "picture_not_found"


class VideoNotFound(LightError):
    """There is no video of that id: it was deleted, has expired, failed, or never existed."""

    code = "video_not_found"


class VideoNotReady(LightError):
    """The video is still being made."""

    code = "video_not_ready"


class TaskNotFound(LightError):
    """There is no task of that id, or no file of it: it has expired, failed, was cancelled, or never existed."""

    code = "task_not_found"


class TaskNotReady(LightError):
    """The task still waits or runs."""

    code = "task_not_ready"


class TasksNotListed(LightError):
    """The request would show or end the tasks of other callers."""

    code = "tasks_not_listed"


class InvalidSettings(LightError):
    """A setting cannot be understood or honoured. This is found before anything is loaded."""

    code = "invalid_settings"


class InvalidCheckpoint(LightError):
    """A weight or configuration file is missing, truncated or inconsistent; the message names the file."""

    code = "invalid_checkpoint"


class OutOfMemory(LightError):
    """A stage needs more device memory than the budget leaves after all others gave way, or its weights need more host
    memory than the node has."""

    code = "out_of_memory"


class TryAgain(LightError):
    """The request may be sent again; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class QueueFull(TryAgain):
    """The queue is full."""

    code = "queue_full"


class RateLimited(TryAgain):
    """The caller asks for more than its key allows."""

    code = "rate_limit_exceeded"


class KeysRequired(LightError):
    """A request came from another machine, to a server without keys."""

    code = "keys_required"


class KeyNotValid(LightError):
    """The request has no key, or one that is not known."""

    code = "invalid_api_key"


class DeadlineExceeded(LightError):
    """The request's deadline passed before its picture was ready."""

    code = "deadline_exceeded"


class StageLost(LightError):
    """A stage's process or output was lost during the request, and again during its retry."""

    code = "stage_lost"


class StaleEpoch(LightError):
    """The epoch of a call is over, because the coordinator has restarted; the process must join again."""

    code = "stale_epoch"


class WarmUpFailed(LightError):
    """The warm-up requests of a model failed, as those of users would."""

    code = "warm_up_failed"


class Cancelled(LightError):
    """The caller went away, or cancelled a video. This is raised between two denoising steps."""

    code = "cancelled"


class NonFinite(LightError):
    """The model produced NaN or infinity, which would decode to a wrong picture."""

    code = "non_finite"
