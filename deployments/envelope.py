"""Errors as OpenAI spells them over HTTP. The only place that knows which typed error is which status."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from lightx2v import errors

STATUS: Mapping[type[errors.LightError], int] = MappingProxyType(
    {
        errors.InvalidRequest: 400,
        errors.ModelNotFound: 404,
        errors.PayloadTooLarge: 413,
        errors.Cancelled: 499,
        errors.NonFinite: 500,
        errors.QueueFull: 503,
        errors.OutOfMemory: 503,
        errors.StageLost: 503,
        errors.StaleEpoch: 503,
        errors.DeadlineExceeded: 504,
    }
)
NEUTRAL = "The server failed to answer this request."


def error_response(error: BaseException) -> JSONResponse:
    """Only errors listed above, and starlette's own, may speak; any other is answered without its message."""
    error = cause(error)
    if isinstance(error, HTTPException):
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        return _envelope(error.status_code, str(error.detail), code, headers=error.headers)
    if not isinstance(error, errors.LightError) or type(error) not in STATUS:
        return _envelope(500, NEUTRAL, errors.LightError.code)
    param = error.param if isinstance(error, errors.InvalidRequest) else None
    return _envelope(STATUS[type(error)], str(error), error.code, param, _retry_after(error))


def cause(error: BaseException) -> BaseException:
    """What a remote call failed of: the error as it was raised there, without the traceback that Ray puts around it."""
    while isinstance(inner := vars(error).get("cause"), BaseException):
        error = inner
    return error


def _retry_after(error: errors.LightError) -> dict[str, str] | None:
    if not isinstance(error, errors.QueueFull):
        return None
    return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}


def _envelope(
    status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"message": _writable(message), "type": kind, "param": param and _writable(param), "code": code}
    return JSONResponse({"error": body}, status, headers)


def _writable(text: str) -> str:
    """Without lone surrogates, which JSON may carry into a message but UTF-8 cannot carry out."""
    return text.encode(errors="replace").decode()
