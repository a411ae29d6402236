"""Error answers in OpenAI's format. This is the only place that maps typed errors to HTTP statuses."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.remote import cause
from lightx2v import errors
from lightx2v.errors import LightError

STATUS: Mapping[type[LightError], int] = MappingProxyType(
    {
        errors.InvalidRequest: 400,
        errors.KeyNotValid: 401,
        errors.KeysRequired: 403,
        errors.OriginNotAllowed: 403,
        errors.TasksNotListed: 403,
        errors.ModelNotFound: 404,
        errors.PictureNotFound: 404,
        errors.TaskNotFound: 404,
        errors.TaskNotReady: 404,
        errors.VideoNotFound: 404,
        errors.VideoNotReady: 409,
        errors.PayloadTooLarge: 413,
        errors.HostNotAllowed: 421,
        errors.RateLimited: 429,
        errors.Cancelled: 499,
        errors.NonFinite: 500,
        errors.QueueFull: 503,
        errors.OutOfMemory: 503,
        errors.StageLost: 503,
        errors.StaleEpoch: 503,
        errors.WarmUpFailed: 503,
        errors.DeadlineExceeded: 504,
    }
)
FINAL = (errors.NonFinite, errors.OutOfMemory, errors.DeadlineExceeded)
"""Errors after which a client should not retry: it would fail again, or has cost enough. OpenAI's clients retry a
status of 500 or more, unless a header says otherwise."""
NEUTRAL = "The server failed to answer this request."

Handler = Callable[[Request], Awaitable[Response]]
log = logging.getLogger(__name__)


def with_error_responses(handler: Handler) -> Handler:
    """The handler with errors turned into answers. An unexpected error is logged and not shown to the caller."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except LightError as error:
            log.info("%s %s: %s: %s", request.method, request.url.path, error.code, error)
            return error_response(error)
        except HTTPException:
            raise
        except Exception as error:
            log.exception("%s %s failed", request.method, request.url.path)
            return error_response(error)

    return answer


def error_response(error: BaseException) -> JSONResponse:
    """The HTTP answer for an error, with its status and headers."""
    error = cause(error)
    headers = error.headers if isinstance(error, HTTPException) else _retry_headers(error)
    return JSONResponse({"error": error_body(error)}, _status(error), headers)


def error_body(error: BaseException) -> dict[str, str | None]:
    """OpenAI's error object: `message`, `type`, `param` and `code`.

    Only errors listed in STATUS, and starlette's own, show their message; any other is answered with NEUTRAL.
    """
    error = cause(error)
    message, code = NEUTRAL, LightError.code
    if isinstance(error, HTTPException):
        message, code = str(error.detail), HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    elif isinstance(error, LightError) and type(error) in STATUS:
        message, code = str(error), error.code
    param = error.param if isinstance(error, errors.InvalidRequest) else None
    kind = "invalid_request_error" if _status(error) < 500 else "server_error"
    return {"message": _writable(message), "type": kind, "param": param and _writable(param), "code": code}


def _status(error: BaseException) -> int:
    if isinstance(error, HTTPException):
        return error.status_code
    return STATUS.get(type(error), 500) if isinstance(error, LightError) else 500


def _retry_headers(error: BaseException) -> dict[str, str]:
    """Headers that say when to retry, not to, or with a key."""
    if isinstance(error, FINAL):
        return {"X-Should-Retry": "false"}
    if isinstance(error, errors.KeyNotValid):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, errors.TryAgain):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    return {}


def _writable(text: str) -> str:
    """The text without lone surrogates: JSON can carry them in, but UTF-8 cannot encode them."""
    return text.encode(errors="replace").decode()
