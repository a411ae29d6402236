"""What goes out: errors and answers as OpenAI spells them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.pagination import SyncPage
from openai.types import ImagesResponse, Model
from ray.exceptions import RayTaskError
from starlette.exceptions import HTTPException

from deployments.http.errors import NEUTRAL, STATUS, error_response
from deployments.http.images import ImageRequest, images_body, models_body, to_requests
from deployments.http.parsing import parse_form
from lightx2v import errors
from lightx2v.errors import InvalidRequest
from lightx2v.limits import Limits
from lightx2v.models.flux2.spec import Flux2Spec
from lightx2v.types import Size

TINY = Flux2Spec(distilled=True, size=Size(64, 48), steps=4, guidance=1.0, multiple=16)
TWO = {"prompt": "a cat", "n": "2", "seed": "5"}


def answered(error: BaseException) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(bytes(error_response(error).body))
    return body["error"]  # type: ignore[no-any-return]


ANSWERS: list[tuple[BaseException, int, str, str]] = [
    (InvalidRequest("no", "size"), 400, "invalid_request_error", "no"),
    (errors.ModelNotFound("no"), 404, "invalid_request_error", "no"),
    (errors.PayloadTooLarge("no"), 413, "invalid_request_error", "no"),
    (errors.KeysRequired("no"), 403, "invalid_request_error", "no"),
    (errors.KeyNotValid("no"), 401, "invalid_request_error", "no"),
    (errors.RateLimited("no", 2.5), 429, "invalid_request_error", "no"),
    (errors.QueueFull("no", 2.5), 503, "server_error", "no"),
    (errors.OutOfMemory("no"), 503, "server_error", "no"),
    (errors.StageLost("no"), 503, "server_error", "no"),
    (errors.DeadlineExceeded("no"), 504, "server_error", "no"),
    (errors.NonFinite("no"), 500, "server_error", "no"),
    (errors.InvalidCheckpoint("/secret/path"), 500, "server_error", NEUTRAL),
    (ValueError("/secret/path"), 500, "server_error", NEUTRAL),
    (HTTPException(405), 405, "invalid_request_error", "Method Not Allowed"),
]


@pytest.mark.parametrize(("error", "status", "kind", "message"), ANSWERS, ids=lambda value: repr(value)[:30])
def test_an_error_over_http(error: BaseException, status: int, kind: str, message: str) -> None:
    body = answered(error)
    assert (error_response(error).status_code, body["type"], body["message"]) == (status, kind, message)
    assert set(body) == {"message", "type", "param", "code"}


def test_param_code_and_retry_after() -> None:
    body = answered(InvalidRequest("no", "size"))
    assert (body["param"], body["code"]) == ("size", "invalid_request")
    assert error_response(errors.QueueFull("no", 2.5)).headers["retry-after"] == "3"
    assert error_response(errors.OutOfMemory("no")).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in error_response(errors.StageLost("no")).headers
    assert error_response(HTTPException(405, headers={"Allow": "POST"})).headers["allow"] == "POST"


def test_an_error_from_a_remote_call_is_answered_as_its_cause() -> None:
    inner = InvalidRequest("no", "size")
    remote: Any = RayTaskError("run", "/secret/path", inner, "proc", 1, "127.0.0.1")
    for error in (remote, remote.as_instanceof_cause()):
        assert error_response(error).status_code == 400
        assert answered(error) == answered(inner)


def test_every_typed_error_for_a_caller_has_a_status() -> None:
    typed = {error for error in vars(errors).values() if isinstance(error, type)}
    ours = {errors.LightError, errors.TryAgain, errors.InvalidSettings, errors.InvalidCheckpoint}
    assert typed - ours == set(STATUS)


def test_half_a_surrogate_pair_in_a_message_is_replaced() -> None:
    assert answered(InvalidRequest("no \ud800", "\udfff"))["message"] == "no ?"


URLS = ["http://a/1.jpg", 'http://"b\\"/2.jpg']


@pytest.mark.parametrize(
    ("attribute", "pictures", "expected"), [("b64_json", [b"one", b"two"], ["b25l", "dHdv"]), ("url", URLS, URLS)]
)
def test_openai_reads_the_answer(attribute: str, pictures: list[bytes | str], expected: list[str]) -> None:
    request = parse_form(ImageRequest, TWO)
    body = images_body("jpeg", to_requests(request, TINY, Limits()), pictures, created=1)
    answer = ImagesResponse.model_validate(json.loads(body))
    assert (answer.size, answer.output_format, answer.created) == ("64x48", "jpeg", 1)
    assert answer.data is not None
    assert [image.model_extra for image in answer.data] == [{"seed": 5}, {"seed": 6}]
    assert [getattr(image, attribute) for image in answer.data] == expected


def test_every_request_needs_its_picture() -> None:
    request = parse_form(ImageRequest, TWO)
    with pytest.raises(ValueError, match="zip"):
        images_body("png", to_requests(request, TINY, Limits()), [b"one"], created=1)


def test_openai_reads_the_models() -> None:
    page = SyncPage[Model].model_validate(models_body(["a", "b"], created=1))
    assert [model.id for model in page.data] == ["a", "b"]
