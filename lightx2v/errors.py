"""The typed errors. A message says what is wrong, where, and what to do; HTTP statuses are decided in `deployments`."""

from __future__ import annotations

from typing import ClassVar


class LightError(Exception):
    """Base of all. Pickles by its arguments and attributes, so it survives a process border."""

    code: ClassVar[str] = "internal_error"


class InvalidRequest(LightError):
    """The caller's input; `param` names the field."""

    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


class PayloadTooLarge(LightError):
    """A body longer than is read; what is beyond the limit was not taken in."""

    code = "payload_too_large"


class OriginNotAllowed(LightError):
    """A page of another site asks for work."""

    code = "origin_not_allowed"


class HostNotAllowed(LightError):
    """A name that is not this server's: what a browser asks by after DNS rebinding."""

    code = "host_not_allowed"


class ModelNotFound(LightError):
    """No model of that name is served here."""

    code = "model_not_found"


class VideoNotFound(LightError):
    """No video of that id, or one that was deleted, has expired or failed."""

    code = "video_not_found"


class VideoNotReady(LightError):
    """A video that is still being made."""

    code = "video_not_ready"


class InvalidSettings(LightError):
    """A setting that cannot be understood or honoured; found before anything is loaded."""

    code = "invalid_settings"


class InvalidCheckpoint(LightError):
    """A weight or configuration file that is missing, truncated or inconsistent; the message names the file."""

    code = "invalid_checkpoint"


class OutOfMemory(LightError):
    """A stage needs more device memory than the budget leaves it, also after all others gave way, or its weights more
    host memory than the node has."""

    code = "out_of_memory"


class QueueFull(LightError):
    """More requests wait than may; `retry_after` is in seconds."""

    code = "queue_full"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class DeadlineExceeded(LightError):
    """The request's deadline passed before its picture was ready."""

    code = "deadline_exceeded"


class StageLost(LightError):
    """A stage's process died under the request, and again under its retry."""

    code = "stage_lost"


class StaleEpoch(LightError):
    """A lease of a coordinator that has since restarted; join again."""

    code = "stale_epoch"


class WarmUpFailed(LightError):
    """The requests that a model was tried with at the start failed, as those of users would."""

    code = "warm_up_failed"


class Cancelled(LightError):
    """The caller went away, or cancelled a video; raised between two denoising steps."""

    code = "cancelled"


class NonFinite(LightError):
    """The model produced NaN or infinity, which would decode to a wrong picture."""

    code = "non_finite"
