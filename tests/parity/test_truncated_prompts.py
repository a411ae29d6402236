"""A prompt that is longer than its model reads is told of: exactly if the words after the cut change nothing."""

from __future__ import annotations

import logging
from bisect import bisect_right
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.pictures import noise
from lightx2v.__main__ import main
from lightx2v.config import EngineSettings
from lightx2v.models.flux2.mistral import SYSTEM_MESSAGE
from lightx2v.models.notices import Notice, ignored, may_be_cut
from lightx2v.models.qwen_image import edit_encoder, encoder
from lightx2v.models.registry import find_family
from lightx2v.pipeline import Pipeline
from lightx2v.stages.interface import StageInputs
from lightx2v.types import GenerateRequest, Size

SEEN = noise(Size(112, 112))
QWEN3 = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PICTURE = "Picture 1: <|vision_start|><|image_pad|><|vision_end|>"

PROMPTED = {
    "distilled": QWEN3 + "<think>\n\n</think>\n\n",
    "dev": f"<s>[SYSTEM_PROMPT]{SYSTEM_MESSAGE}[/SYSTEM_PROMPT][INST]{{}}[/INST]",
    "z_base": QWEN3,
    "qwen_image": encoder.TEMPLATE,
    "edit_2511": edit_encoder.TEMPLATE.replace("{}", PICTURE + "{}"),
    "wan": "{}",
}
"""What the tokenizer gets for a prompt, by the names of the checkpoints' fixtures."""

LIMITS = {"edit_2511": 64 + 1024, "qwen_image": 34 + 512}
"""The tokens that are read; 512 by all others."""


class Encoder:
    """The first stage of a model, and the tokens of a prompt as its tokenizer alone counts them."""

    def __init__(self, name: str, checkpoint: Path) -> None:
        self._pipeline = Pipeline(EngineSettings(model=str(checkpoint), dtype="float32", device="cpu"))
        self.spec = find_family(checkpoint).spec(checkpoint)
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
        self._prompted, self.limit = PROMPTED[name], LIMITS.get(name, 512)
        self._pictures = (SEEN,) if name == "edit_2511" else ()
        self._specials = name != "dev"

    def tokens(self, prompt: str) -> int:
        text = self._prompted.format(prompt)
        return len(self._tokenizer(text, add_special_tokens=self._specials)["input_ids"])

    def request(self, prompt: str, **fields: Any) -> GenerateRequest:
        sizes = tuple(picture.size for picture in self._pictures)
        plain = GenerateRequest("long", prompt, Size(64, 64), 1, 0, guidance=self.spec.guidance, references=sizes)
        return replace(plain, **fields)

    def notices(self, prompt: str, **fields: Any) -> tuple[Notice, ...]:
        return self._pipeline.notices(self.request(prompt, **fields))

    def encoded(self, prompt: str) -> torch.Tensor:
        made = self._pipeline.run_stage("encode", "run", self.request(prompt), StageInputs(self._pictures))
        positive: torch.Tensor = made.positive
        return positive

    @cached_property
    def longest(self) -> str:
        """The longest row of "red" that is read to its end."""
        words = bisect_right(range(2 * self.limit), self.limit, key=lambda words: self.tokens("red " * words + "red"))
        return "red " * (words - 1) + "red"


@pytest.fixture(scope="module", params=PROMPTED)
def long(request: pytest.FixtureRequest) -> Encoder:
    return Encoder(request.param, request.getfixturevalue(request.param))


def test_the_longest_prompt_that_is_read_and_the_next(long: Encoder) -> None:
    fits = long.longest
    assert long.notices(fits) == ()
    over = f"{fits} red"
    assert long.notices(over) == (Notice("prompt_truncated", f"{long.limit} of {long.tokens(over)} tokens are read"),)


def test_words_after_the_cut_change_nothing_and_words_before_it_do(long: Encoder) -> None:
    fits, rest = long.longest, " red" * 300
    assert long.notices(fits + rest + " square") != ()
    assert torch.equal(long.encoded(fits + rest + " square"), long.encoded(fits + rest + " circle"))
    assert not torch.equal(long.encoded(fits), long.encoded(f"{fits[:-3]}cat"))


def test_a_negative_prompt_is_counted_where_it_has_an_effect(long: Encoder) -> None:
    prompt = long.longest + " red" * 300
    guided = {"negative_prompt": prompt, "guidance": 4.0}
    has_effect = long.spec.is_guided(long.request("red", **guided))
    told, *_ = long.notices("red", **guided)
    assert told.kind == ("negative_prompt_truncated" if has_effect else "negative_prompt_ignored")


def test_the_server_asks_about_every_prompt_that_may_be_cut(long: Encoder) -> None:
    fits, spec = long.longest, long.spec
    assert may_be_cut(long.request(fits), spec)
    assert may_be_cut(long.request("red", negative_prompt=fits), spec)
    assert not may_be_cut(long.request("red"), spec)


def test_a_tokenizer_may_read_less(checkpoint: Path) -> None:
    assert find_family(checkpoint).spec(checkpoint).prompt_tokens == 512
    bundled = EngineSettings().model
    assert find_family(Path(bundled)).spec(Path(bundled)).prompt_tokens == 64


def test_what_a_distilled_model_ignores(distilled: Path, dev: Path, z_turbo: Path) -> None:
    request = GenerateRequest("r", "red", Size(64, 64), 1, 0, negative_prompt="blue")
    specs = [find_family(path).spec(path) for path in (distilled, dev, z_turbo)]
    told = [[str(one) for one in ignored(replace(request, guidance=guidance), spec)] for spec, guidance in zip(
        specs, (7.0, 7.0, 0.0), strict=True
    )]  # fmt: skip
    assert told == [
        [
            "negative_prompt_ignored: this model follows none",
            "guidance_scale_ignored: this model is distilled and follows none",
        ],
        ["negative_prompt_ignored: this model follows none"],
        ["negative_prompt_ignored: guidance_scale 0 is no guidance"],
    ]
    assert ignored(replace(request, guidance=specs[0].guidance, negative_prompt=""), specs[0]) == ()


def test_the_command_line_tells_of_it(distilled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "a.png"
    arguments = ["--model", str(distilled), "-o", str(output), "--steps", "1", "--negative-prompt", "blue"]
    with caplog.at_level(logging.WARNING, "lightx2v"):
        assert main(["red " * 600, *arguments]) == 0
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "negative_prompt_ignored",
        "prompt_truncated",
    ]
