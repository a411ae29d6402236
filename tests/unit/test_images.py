"""What the images API takes, refuses and answers."""

from __future__ import annotations

import json
import math
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.image_edit_params import ImageEditParamsBase, ImageEditParamsNonStreaming
from openai.types.image_generate_params import ImageGenerateParamsBase, ImageGenerateParamsNonStreaming
from pydantic import ValidationError

from deployments.http import parsing
from deployments.http.errors import error_response
from deployments.http.images import ImageRequest, to_requests
from deployments.http.parsing import parse, parse_form, parse_json, read_object
from deployments.http.synonyms import HINTS, SYNONYMS
from deployments.http.video_schema import VideoRequest
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
        "priority": -3,
        "size": "1024x768",
        "n": 2,
        "seed": 2**64 - 1,
        "response_format": "url",
        "output_format": "webp",
        "num_inference_steps": 8,
        "guidance_scale": 2.5,
        "negative_prompt": "dog",
        "strength": 0.5,
        "lora": "oil",
        "lora_scale": -0.5,
        "width": 1024,
        "height": 768,
        "stream": False,
        "background": "opaque",
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


NUMBERS = [
    ("seed", 42, [42, 42.0, "42", "42.0", " 42 ", "+42"]),
    ("seed", 2**64 - 1, [2**64 - 1, str(2**64 - 1)]),
    ("seed", -1, [-1, -1.0, "-1"]),
    ("n", 2, [2, 2.0, "2"]),
    ("num_inference_steps", 4, [4, 4.0, "4", "4.0"]),
    ("guidance_scale", 4.0, [4, 4.0, "4", "4.0", "4.", "40e-1"]),
    ("strength", 0.5, [0.5, "0.5", ".5"]),
    ("lora_scale", -0.5, [-0.5, "-0.5"]),
]


@pytest.mark.parametrize(("field", "number", "spellings"), NUMBERS)
def test_a_number_is_read_however_it_is_spelt(field: str, number: float | None, spellings: list[Any]) -> None:
    for spelling in spellings:
        read = getattr(parsed(**{field: spelling}), field)
        assert (read, type(read)) == (number, type(number))
        assert getattr(parse_form(ImageRequest, {"prompt": "a cat", field: str(spelling)}), field) == number


def test_an_empty_field_of_a_form_is_absent() -> None:
    assert parse_form(ImageRequest, {"prompt": "a cat", **dict.fromkeys(FIELDS[1:], "")}) == parsed()


def test_what_has_no_meaning_here_is_ignored() -> None:
    assert parsed(**{key: {"any": ["thing"]} for key in ImageRequest.IGNORED}, stream=False) == parsed()
    assert parse_form(ImageRequest, {"prompt": "a cat", "stream": "false", "metadata[a]": "b"}) == parsed()


BAD: dict[str, list[Any]] = {
    "size": [
        "1024",
        "64x",
        "64-64",
        "64x64x64",
        "0:1",
        "16:",
        "1K",
        "4K",
        "large",
        "-1x64",
        "64x64.5",
        "٦٤x64",
        "9999999x1",
        "x",
        "NaNxNaN",
        "1" * 10**5,
        8,
        True,
        {},
    ],
    "": [1],
    "n": [0, -1, 11, 10**9, 1.5, "0", "1.5", "one", "٤", "1" * 5000, True, False, [1]],
    "seed": [-2, "-2", 2**64, 1e19, 10**400, "9" * 5000, 1.5, "abc", "1_0", "nan", False, True, [], {}],
    "num_inference_steps": [0, -1, 2.5, "2.5", "4 steps", True],
    "guidance_scale": [-1, 101, 1e308, 10**400, "101", "nan", "inf", "1e999", "1,5", "٤", True, False, []],
    "strength": [0, -0.1, 1.01, 1e308, "0", True, []],
    "prompt": [None, "", " \t\n\u3000", "a\0b", "\ud800", "\udfff x", 7, ["a"], {"a": 1}, True],
    "negative_prompt": ["a\0b", "\ud800", 7],
    "lora": ["", "l" * 257, "\0", "\ud800", 5, ["oil"]],
    "lora_scale": ["one", "", True, []],
    "loras": [
        "oil",
        "[",
        {},
        ["oil"],
        [{}],
        [{"name": ""}],
        [{"name": "oil", "scale": "one"}],
        [{"name": "oil", "weight": 1}],
        [{"name": "oil"}] * 65,
        [{str(key): 1 for key in range(17)}],
    ],
    "shift": [0, -1, "three", True],
    "model": ["", "m" * 257, "\0", "\ud800", 5],
    "output_format": ["gif", "svg", "PNG", "", 1, "\ud800"],
    "response_format": ["file", 1],
    "stream": [True, "true", "True", 1, "yes", [], {}],
    "background": ["transparent", " Transparent"],
    "mask": ["data:image/png;base64,AAAA"],
    "markup": ["data:image/png;base64,AAAA"],
    "image": ["data:image/png;base64,AAAA"],
    "width": [0, -1, 64.5, "wide", True, 10**6],
    "height": [0, 10**400],
    "steps": [0, 2.5, True],
    "true_cfg_scale": [101, "strong"],
    "\ud800": [1],
    "k" * 80: [1],
}
BAD_FIELDS = [(param, value) for param, values in BAD.items() for value in values]


@pytest.mark.parametrize(("param", "value"), BAD_FIELDS, ids=lambda value: repr(value)[:24])
def test_a_bad_field_is_refused_by_name(param: str, value: Any) -> None:
    error = refused(json.dumps({"prompt": "a cat", param: value}).encode())
    assert error.param == param
    assert error_response(error).status_code == 400


@pytest.mark.parametrize("loras", [[1] * 50_000, [{"name": "oil"}] * 50_000], ids=["numbers", "objects"])
def test_a_long_list_of_loras_is_not_described_entry_by_entry(loras: list[Any]) -> None:
    body = json.dumps({"prompt": "a cat", "loras": loras}).encode()
    values = read_object(body)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="loras: "):
            parse(ImageRequest, values)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


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
    "many values": b'{"prompt": "a", "user": [[]' + b",[]" * (1 << 20) + b"]}",
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
    [
        *(("num_steps", "num_inference_steps"), ("guidence_scale", "guidance_scale"), ("promt", "prompt")),
        *(("Size", "size"), ("aspect_ratio", "size"), ("cfg", "guidance_scale"), ("CFGScale", "guidance_scale")),
        *(("num_images", "n"), ("denoise", "strength"), ("noise_seed", "seed"), ("format", "output_format")),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, known: str) -> None:
    body = json.dumps({"prompt": "a", key: 1}).encode()
    assert f"did you mean {known}?" in str(refused(body))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("sampler_name", "each model has one sampler, its own"),
        ("extra_body", "put its fields into the body itself"),
        ("mask", "send pictures as image, and a mask as mask, to /v1/images/edits"),
    ],
)
def test_a_key_without_a_field_gets_a_sentence(key: str, hint: str) -> None:
    assert str(refused(json.dumps({"prompt": "a", key: 1}).encode())) == f"unknown parameter '{key}'; {hint}"


def test_every_hint_leads_somewhere() -> None:
    fields = {*ImageRequest.model_fields, *VideoRequest.model_fields}
    assert {hint for hint in HINTS.values() if " " not in hint} <= fields
    assert {*SYNONYMS.values()} <= fields
    assert not {*HINTS, *SYNONYMS} & fields


def test_openais_parameters_are_known() -> None:
    """What the installed client can send is a field, ignored, a file, or refused with a sentence of its own."""
    generate, edit = ImageGenerateParamsNonStreaming.__annotations__, ImageEditParamsNonStreaming.__annotations__
    known = {*FIELDS, *ImageRequest.IGNORED}
    sent = {*generate, *ImageGenerateParamsBase.__annotations__, *edit, *ImageEditParamsBase.__annotations__}
    assert sent - known == {"image", "mask", "markup"} <= {*ImageRequest.HINTS}


@pytest.mark.parametrize("synonym", SYNONYMS)
def test_a_synonym_is_its_field(synonym: str) -> None:
    field = SYNONYMS[synonym]
    assert parsed(**{synonym: 4}) == parsed(**{field: 4})
    assert refused(json.dumps({"prompt": "a", synonym: "x"}).encode()).param == synonym
    twice = refused(json.dumps({"prompt": "a", field: 4, synonym: 4}).encode())
    assert (str(twice), twice.param) == (f"{synonym}: give it or {field}, not both", synonym)


@pytest.mark.parametrize("false", [False, "false", "False", 0, "0", ""])
def test_no_stream_is_what_there_is(false: Any) -> None:
    assert parsed(stream=false) == parse_form(ImageRequest, {"prompt": "a cat", "stream": str(false)}) == parsed()


def test_a_stream_and_transparency_are_refused_in_a_sentence() -> None:
    assert str(refused(b'{"prompt": "a", "stream": true}')).startswith("stream: answers are not streamed; leave it out")
    assert str(refused(b'{"prompt": "a", "background": "transparent"}')).startswith("background: pictures are opaque")
    assert parsed(background="auto") == parsed(background="opaque") == parsed()


def test_jpg_is_jpeg() -> None:
    assert parsed(output_format="jpg").output_format == "jpeg"


@pytest.mark.parametrize("text", ["1024x768", "1024X768", "1024*768", "1024×768", " 1024 x 768 "])
def test_a_size_is_read_however_it_is_spelt(text: str) -> None:
    assert parsed(size=text).size == parse_form(ImageRequest, {"prompt": "a", "size": text}).size == Size(1024, 768)


@pytest.mark.parametrize("text", ["", "auto", " "])
def test_no_size_is_the_models(text: str) -> None:
    assert parsed(size=text).size is None


def test_width_and_height_are_a_size() -> None:
    made = to_requests(parsed(width=96, height="32"), TINY, Limits())[0]
    assert made.size == Size(96, 32)
    assert to_requests(parsed(width=96, height=32, size="96x32"), TINY, Limits())[0].size == made.size
    for fields in ({"width": 96}, {"height": 96}, {"width": 96, "height": 32, "size": "96x48"}):
        with pytest.raises(InvalidRequest) as caught:
            to_requests(parsed(**fields), TINY, Limits())
        assert caught.value.param in fields


@pytest.mark.parametrize(
    ("aspect", "size"), [("1:1", "1024x1024"), ("16:9", "1360x768"), ("9:16", "768x1360"), ("3 : 2", "1248x832")]
)
def test_an_aspect_has_the_default_area(aspect: str, size: str) -> None:
    spec = replace(TINY, size=Size(1024, 1024))
    assert str(to_requests(parsed(size=aspect), spec, Limits())[0].size) == size


def test_an_aspect_beyond_the_limits_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most 10 times the shorter, got 11:1"):
        to_requests(parsed(size="11:1"), TINY, Limits())


@pytest.mark.parametrize(("text", "pixels"), [("1K", "1024x1024"), ("2k", "2048x2048")])
def test_a_size_in_thousands_is_refused_with_what_to_write(text: str, pixels: str) -> None:
    with pytest.raises(InvalidRequest, match=f"as in '{pixels}'"):
        parsed(size=text)


NEAREST = [
    *((16, *sizes) for sizes in [("1920x1080", "1920x1072"), ("1080x1080", "1072x1072"), ("1366x768", "1360x768")]),
    *((16, *sizes) for sizes in [("1666x2514", "1664x2512"), ("8192x4096", "2896x1440"), ("4096x4096", "2048x2048")]),
    *((16, *sizes) for sizes in [("1x1", "16x16"), ("8x1", "128x16"), ("0x64", "16x160")]),
    (32, "1280x720", "1280x704"),
    (16, "16x65536", "320x3200"),
]


@pytest.mark.parametrize(("multiple", "asked", "near"), NEAREST)
def test_the_nearest_size_is_named_or_made(multiple: int, asked: str, near: str) -> None:
    spec = replace(TINY, multiple=multiple)
    with pytest.raises(InvalidRequest, match=f"got {asked}; the nearest that can be made is {near}"):
        to_requests(parsed(size=asked), spec, Limits())
    assert str(to_requests(parsed(size=asked), spec, Limits(size_policy="nearest"))[0].size) == near


sides = st.integers(0, 9999)


@given(sides, sides, st.sampled_from([8, 16, 32, 48]))
def test_the_nearest_size_keeps_the_limits(width: int, height: int, multiple: int) -> None:
    """A size that keeps them already is its own nearest; what is too large keeps its aspect."""
    limits, asked = Limits(), Size(width, height)
    near = limits.nearest(asked, multiple)
    spec = replace(TINY, multiple=multiple)
    (made,) = to_requests(parsed(size=str(near)), spec, limits)
    assert made.size == near == limits.nearest(near, multiple)
    if max(width, height) <= 10 * min(width, height) and min(width, height) >= 4 * multiple:
        aspect = math.log(near.width / near.height) - math.log(width / height)
        assert abs(aspect) <= multiple / near.width + multiple / near.height


def test_a_message_says_what_was_got_and_what_is_allowed() -> None:
    seeds = "seed: must be from 0 to 18446744073709551615, or -1 for a random one, got"
    assert str(refused(b'{"prompt": "a", "seed": -2}')) == f"{seeds} -2"
    too_large = b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}"
    assert str(refused(too_large)) == "seed: must be a whole number, got a number that is too large"
    assert str(refused(b'{"prompt": "a", "n": 11}')) == "n: should be less than or equal to 10, got 11"
    assert str(refused(b"{}")) == "prompt is required"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": ""},
        {"prompt": "a", "n": "0"},
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
    drawn = {to_requests(parsed(seed=seed), TINY, Limits())[0].seed for seed in [None, -1] * 4}
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
