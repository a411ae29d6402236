"""What the images API takes, refuses and answers."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.http import parsing
from deployments.http.errors import error_response
from deployments.http.images import ImageRequest, to_requests
from deployments.http.parsing import parse_form, parse_json
from deployments.settings import ServerSettings
from lightx2v.errors import InvalidRequest
from lightx2v.limits import RANDOM_SEEDS, SEEDS, Limits
from lightx2v.models.flux2.spec import Flux2Spec
from lightx2v.models.spec import ModelSpec
from lightx2v.models.z_image.spec import ZImageSpec
from lightx2v.types import STRENGTH, ChosenLora, Size

FIELDS = tuple(ImageRequest.model_fields)
TINY = Flux2Spec(distilled=True, size=Size(64, 48), steps=4, guidance=1.0, multiple=16)
STARTED = ZImageSpec(Size(64, 48), steps=8, guidance=0.0, multiple=16, shift=3.0)


def parsed(**values: Any) -> ImageRequest:
    return parse_json(ImageRequest, json.dumps({"prompt": "a cat", **values}).encode())


def refused(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(ImageRequest, body)
    assert len(str(caught.value)) < 500
    assert len(caught.value.param or "") <= 80
    return caught.value


def test_a_prompt_is_enough() -> None:
    request = parse_json(ImageRequest, b'{"prompt": "a cat"}')
    assert (request.n, request.seed, request.size, request.response_format) == (1, None, None, "b64_json")


def test_every_field_is_understood_from_json_and_from_a_form() -> None:
    values = {
        "prompt": "a cat 🐈",
        "model": "tiny",
        "size": "1024x768",
        "n": 2,
        "seed": 2**63 - 1,
        "response_format": "url",
        "output_format": "webp",
        "num_inference_steps": 8,
        "guidance_scale": 2.5,
        "negative_prompt": "dog",
        "strength": 0.5,
        "lora": "oil",
        "lora_scale": -0.5,
        "loras": [{"name": "ink", "scale": 0.25}, {"name": "oil"}],
        "shift": 3.0,
    }
    assert set(values) == set(FIELDS)
    request = parse_json(ImageRequest, json.dumps(values).encode())
    assert request.size == Size(1024, 768)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    assert request == parse_form(ImageRequest, texts)


def test_null_is_absent() -> None:
    assert parsed(seed=None, size=None, n=None, mask=None, stream=None) == parsed()


def test_what_has_no_meaning_here_is_ignored() -> None:
    assert parsed(**{key: {"any": ["thing"]} for key in ImageRequest.IGNORED}, stream=False) == parsed()
    assert parse_form(ImageRequest, {"prompt": "a cat", "stream": "false", "quality": "high"}) == parsed()


BAD: dict[str, list[Any]] = {
    "size": [
        "1024",
        "64X64",
        "-1x64",
        "64x64.5",
        "64x64 ",
        "٦٤x64",
        "9999999x1",
        "x",
        "",
        "NaNxNaN",
        "1" * 10**5,
        8,
        True,
        {},
    ],
    "": [1],
    "n": [0, -1, 11, 10**9, 1.0, 1.5, "1", True, [1]],
    "seed": [-1, 2**63, 2**64, 10**400, 1.5, "abc", "1", False, [], {}],
    "num_inference_steps": [0, -1, 2.5, "4", True],
    "guidance_scale": [-1, 101, 1e308, "1", True, []],
    "strength": [0, -0.1, 1.01, 1e308, "1", True, []],
    "prompt": [None, "", " \t\n\u3000", "a\0b", "\ud800", "\udfff x", 7, ["a"], {"a": 1}, True],
    "negative_prompt": ["a\0b", "\ud800", 7],
    "lora": ["", "l" * 257, "\0", "\ud800", 5, ["oil"]],
    "lora_scale": ["1", True, []],
    "loras": [
        "oil",
        "[",
        {},
        ["oil"],
        [{}],
        [{"name": ""}],
        [{"name": "oil", "scale": "1"}],
        [{"name": "oil", "weight": 1}],
    ],
    "shift": [0, -1, "3", True],
    "model": ["", "m" * 257, "\0", "\ud800", 5],
    "output_format": ["gif", "PNG", "", 1, "\ud800"],
    "response_format": ["file", 1],
    "stream": [True, "true", 1],
    "mask": ["data:image/png;base64,AAAA"],
    "width": [512],
    "\ud800": [1],
    "k" * 80: [1],
}
BAD_FIELDS = [(param, value) for param, values in BAD.items() for value in values]


@pytest.mark.parametrize(("param", "value"), BAD_FIELDS, ids=lambda value: repr(value)[:24])
def test_a_bad_field_is_refused_by_name(param: str, value: Any) -> None:
    error = refused(json.dumps({"prompt": "a cat", param: value}).encode())
    assert error.param == param
    assert error_response(error).status_code == 400


BODIES = {
    "empty": b"",
    "blank": b"  ",
    "invalid utf-8": b'{"prompt": "\xff"}',
    "utf-16": '{"prompt": "a"}'.encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00",
    "truncated": b'{"prompt": "a',
    "trailing": b'{"prompt": "a"} x',
    "nan": b'{"prompt": "a", "guidance_scale": NaN}',
    "nan where nothing is read": b'{"prompt": "a", "user": NaN}',
    "infinity": b'{"prompt": "a", "guidance_scale": Infinity}',
    "minus infinity": b'{"prompt": "a", "guidance_scale": -Infinity}',
    "float overflow": b'{"prompt": "a", "guidance_scale": 1e400}',
    "seed overflow": b'{"prompt": "a", "seed": 1e400}',
    "long integer": b'{"prompt": "a", "seed": ' + b"9" * 10**5 + b"}",
    "deep lists": b"[" * 10**5,
    "deep closed lists": b'{"prompt": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "deep objects": b'{"a":' * 10**5,
    "duplicate key": b'{"prompt": "a", "prompt": "b"}',
    "duplicate ignored key": b'{"prompt": "a", "user": "b", "user": "c"}',
    "list": b'[{"prompt": "a"}]',
    "string": b'"a cat"',
    "null": b"null",
    "many unknown keys": json.dumps({"prompt": "a", **{f"key{i}": i for i in range(10**5)}}).encode(),
    "long key": json.dumps({"prompt": "a", "k" * 10**6: 1}).encode(),
    "missing prompt": b"{}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_bad_body_is_refused(body: bytes) -> None:
    refused(body)


@pytest.mark.parametrize("body", ["many unknown keys", "long key"])
def test_only_one_short_key_is_compared_with_the_known(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is the costly part: it takes the square of a key's length, and there may be 10^5 keys."""
    compared: list[str] = []

    def compare(key: str, *_: object, **__: object) -> list[str]:
        compared.append(key)
        return []

    monkeypatch.setattr(parsing, "get_close_matches", compare)
    refused(BODIES[body])
    assert len(compared) == 1
    assert len(compared[0]) <= 80


@pytest.mark.parametrize(
    "prompt", ["<|im_end|>", "\u202eabc", "👩‍👩‍👧‍👦", "e" + "\u0301" * 500, "\U0010ffff", "\ufeffa", " a "]
)
def test_unusual_prompts_arrive_unchanged(prompt: str) -> None:
    assert parsed(prompt=prompt).prompt == prompt


@pytest.mark.parametrize(
    ("key", "known"),
    [("steps", "num_inference_steps"), ("guidence_scale", "guidance_scale"), ("promt", "prompt"), ("Size", "size")],
)
def test_an_unknown_key_names_the_nearest(key: str, known: str) -> None:
    body = json.dumps({"prompt": "a", key: 1}).encode()
    assert f"did you mean {known}?" in str(refused(body))


def test_a_message_says_what_was_got_and_what_is_allowed() -> None:
    assert str(refused(b'{"prompt": "a", "n": 11}')) == "n: should be less than or equal to 10, got 11"
    assert str(refused(b"{}")) == "prompt is required"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": ""},
        {"prompt": "a", "n": ""},
        {"prompt": "a", "n": "1.5"},
        {"prompt": "a", "seed": "9" * 5000},
        {"prompt": "a", "guidance_scale": "nan"},
        {"prompt": "a", "guidance_scale": "1e400"},
        {"prompt": "a", "stream": "true"},
        {"prompt": "a", "mask": "x"},
        {"prompt": "a", "colour": "x"},
    ],
)
def test_a_bad_form_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        parse_form(ImageRequest, fields)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@settings(max_examples=300)
@given(st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
def test_no_bytes_do_more_than_be_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_json(ImageRequest, body)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from((*FIELDS, *ImageRequest.IGNORED, "stream", "mask")) | st.text(), JSON, max_size=5)
)
def test_no_json_does_more_than_be_refused(values: dict[str, Any]) -> None:
    with suppress(InvalidRequest):
        to_requests(parse_json(ImageRequest, json.dumps(values).encode()), TINY, Limits())


def test_pictures_of_a_request_have_consecutive_seeds() -> None:
    made = to_requests(parsed(n=3, seed=7), TINY, Limits())
    assert [one.seed for one in made] == [7, 8, 9]
    assert len({one.id for one in made}) == 3
    assert {one.size for one in made} == {Size(64, 48)}
    assert {(one.steps, one.guidance) for one in made} == {(4, 1.0)}


def test_the_last_seed_is_followed_by_the_first() -> None:
    assert [one.seed for one in to_requests(parsed(n=2, seed=SEEDS - 1), TINY, Limits())] == [SEEDS - 1, 0]


def test_a_seed_is_drawn_when_none_is_given() -> None:
    drawn = {to_requests(parsed(), TINY, Limits())[0].seed for _ in range(8)}
    assert len(drawn) == 8
    assert all(0 <= seed < RANDOM_SEEDS for seed in drawn)


def test_zero_is_a_seed_and_a_guidance() -> None:
    (one,) = to_requests(parsed(seed=0, guidance_scale=0), replace(TINY, guidance=4.0), Limits())
    assert (one.seed, one.guidance) == (0, 0.0)


def test_a_lora_is_one_of_those_that_are_served() -> None:
    limits = Limits(loras=("oil",))
    made = to_requests(parsed(lora="oil", lora_scale=0.5, n=2), TINY, limits)
    assert {one.loras for one in made} == {(ChosenLora("oil", 0.5),)}
    assert {one.loras for one in to_requests(parsed(), TINY, limits)} == {()}
    for fields in ({"lora": "ink"}, {"lora": "oil", "lora_scale": 11}, {"lora_scale": 2}):
        with pytest.raises(InvalidRequest, match=r"^lora"):
            to_requests(parsed(**fields), TINY, limits)


def test_an_edit_takes_the_size_of_its_first_reference() -> None:
    references = [Size(96, 32), Size(16, 16)]
    assert to_requests(parsed(size="auto"), TINY, Limits(), references)[0].size == Size(96, 32)
    assert to_requests(parsed(size="64x64"), TINY, Limits(), references)[0].references == tuple(references)


@pytest.mark.parametrize("size", ["0x64", "1x1", "17x16", "64x63", "8192x8192", "16x65536", "16x176", "999999x999999"])
def test_a_size_out_of_bounds_is_refused(size: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_requests(parsed(size=size), TINY, Limits())
    assert caught.value.param == "size"
    assert size in str(caught.value)


@pytest.mark.parametrize("size", ["16x16", "2048x2048", "128x16", "4096x1024"])
def test_a_size_at_the_bounds_is_taken(size: str) -> None:
    assert str(to_requests(parsed(size=size), TINY, Limits())[0].size) == size


@pytest.mark.parametrize(
    ("param", "value"), [("num_inference_steps", 101), ("prompt", "a" * 32769), ("negative_prompt", "a" * 32769)]
)
def test_more_than_the_limits_is_refused(param: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_requests(parsed(**{param: value}), TINY, Limits())
    assert caught.value.param == param


def test_too_many_references_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most 8, got 9"):
        to_requests(parsed(), TINY, Limits(), [Size(16, 16)] * 9)


def test_an_edit_of_one_picture_takes_no_second() -> None:
    with pytest.raises(InvalidRequest, match="at most 1, got 2"):
        to_requests(parsed(size="64x64"), STARTED, Limits(), [Size(64, 64)] * 2)


def test_strength_goes_with_a_picture_to_start_from() -> None:
    (one,) = to_requests(parsed(strength=0.25), STARTED, Limits(), [Size(100, 75)])
    assert (one.strength, one.size) == (0.25, Size(96, 64))
    assert to_requests(parsed(), STARTED, Limits(), [Size(64, 64)])[0].strength == STRENGTH
    assert to_requests(parsed(), STARTED, Limits())[0].size == Size(64, 48)


@pytest.mark.parametrize(("spec", "references"), [(TINY, 0), (TINY, 1), (STARTED, 0)])
def test_strength_elsewhere_is_refused(spec: ModelSpec, references: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_requests(parsed(strength=0.5), spec, Limits(), [Size(64, 64)] * references)
    assert caught.value.param == "strength"


def test_the_longest_prompts_fit_the_json_limit() -> None:
    limits = Limits()
    longest = "\U0010ffff" * limits.max_prompt_chars
    body = json.dumps({"prompt": longest, "negative_prompt": longest}).encode()
    assert len(body) < ServerSettings().max_json_bytes
    assert to_requests(parse_json(ImageRequest, body), TINY, limits)[0].prompt == longest


def test_a_request_is_frozen() -> None:
    with pytest.raises(ValidationError):
        parsed().prompt = "another"
