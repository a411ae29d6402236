"""fp8 against diffusers and transformers with an emulation of it in the place of their blocks' linear layers.

Rounding is not continuous: two values that differ in the last bit can become numbers that differ by an eighth. So every
layer of ours is given what the reference's was given, once it is clear that it got the same but for those bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightx2v.config import EngineSettings
from lightx2v.models.component import Component
from lightx2v.pipeline import Pipeline
from lightx2v.stages.interface import StageInputs
from lightx2v.types import Conditioning
from tests.checkpoints.variants import BUDGETS
from tests.e4m3 import Emulated, emulate, in_block
from tests.parity.reference import LATENTS, load_reference, make_request, make_with_all, reference_generate

PROMPT = "a red circle left of a blue square"


def open_pipeline(checkpoint: Path, **settings: Any) -> Pipeline:
    engine: dict[str, Any] = {"dtype": "float32", "device": "cpu", "cpu_offload": False, "fp8": True} | settings
    return Pipeline(EngineSettings(model=str(checkpoint), **engine))


def follow(component: Component, emulated: dict[str, Emulated]) -> list[str]:
    """Gives our layers what the reference's got, call by call. The list fills with who was called."""
    called: list[str] = []
    theirs = {in_block(path): layer for path, layer in emulated.items()}
    for path in component.weights.fp8_layers:
        source = in_block(component.weights.source(path))
        given = iter(theirs[source].inputs)
        layer = component.module.get_submodule(path)
        layer.register_forward_pre_hook(_giving(given, source, called))
    return called


def _giving(given: Iterator[torch.Tensor], source: str, called: list[str]) -> Any:
    def hook(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        called.append(source)
        (ours,), theirs = inputs, next(given)
        theirs = _own(theirs, ours.shape[-2]) if theirs.shape != ours.shape else theirs
        torch.testing.assert_close(ours, theirs, rtol=LATENTS, atol=LATENTS, msg=lambda text: f"{source}: {text}")
        return (theirs,)

    return hook


def _own(theirs: torch.Tensor, tokens: int) -> torch.Tensor:
    """Without the padding that we do not compute, which is at one of its ends."""
    same_ends = torch.equal(theirs[:, 0], theirs[:, 1])
    return theirs[:, -tokens:] if same_ends else theirs[:, :tokens]


@pytest.mark.parametrize("variant", ["distilled", "dev", "wan"])
def test_conditioning(variant: str, request: pytest.FixtureRequest) -> None:
    """Wan's too, whose feed-forward layers ask for the type of a weight."""
    checkpoint = request.getfixturevalue(variant)
    reference = load_reference(checkpoint)
    arguments = {"do_classifier_free_guidance": False, "max_sequence_length": 512} if variant == "wan" else {}
    exact = reference.encode_prompt(PROMPT, **arguments)[0][0]
    emulated = emulate(reference.text_encoder)
    with torch.no_grad():
        expected = reference.encode_prompt(PROMPT, **arguments)[0][0]
    with closing(open_pipeline(checkpoint)) as pipeline:
        stage = pipeline._stages["encode"]
        called = follow(stage.component, emulated)
        found = pipeline.run_stage("encode", "run", make_request(prompt=PROMPT), StageInputs()).positive
        used = {in_block(path) for path, layer in emulated.items() if layer.inputs}
        assert sorted(called) == sorted(set(called))
        assert set(called) <= used
        assert len(called) == len(stage.component.weights.fp8_layers) > 10
    torch.testing.assert_close(found, expected[: len(found)], rtol=LATENTS, atol=LATENTS)
    assert (expected - exact).abs().max() > 100 * LATENTS, "or nothing was compared"


@pytest.mark.parametrize("variant", ["distilled", "dev"])
def test_all_steps(variant: str, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(variant)
    reference = load_reference(checkpoint)
    asked = make_request(80, 48, steps=2)
    conditioning = Conditioning(reference.encode_prompt(asked.prompt)[0][0])
    exact, _ = reference_generate(reference, asked)
    emulated = emulate(reference.transformer)
    expected, _ = reference_generate(reference, asked)
    with closing(open_pipeline(checkpoint)) as pipeline:
        called = follow(pipeline._stages["denoise"].component, emulated)
        found = pipeline.run_stage("denoise", "run", asked, StageInputs(conditioning=conditioning)).tokens
        assert sorted(called) == sorted(2 * [in_block(path) for path in emulated])
    torch.testing.assert_close(found, expected, rtol=LATENTS, atol=LATENTS)
    assert (expected - exact).abs().max() > 100 * LATENTS, "or nothing was compared"


@pytest.mark.parametrize(
    "settings",
    [
        {"cpu_offload": True, "offload_granularity": "phase"},
        {"cpu_offload": True, "lazy_load": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
@pytest.mark.parametrize("variant", BUDGETS)
@pytest.mark.usefixtures("small_references")
def test_same_bits_under_every_setting(variant: str, settings: dict[str, Any], request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(variant)
    (expected,) = make_with_all(checkpoint, 64, cpu_offload=False, fp8=True)
    (streamed,) = make_with_all(checkpoint, 64, fp8=True, **settings)
    (exact,) = make_with_all(checkpoint, 64, cpu_offload=False)
    np.testing.assert_array_equal(streamed.pixels, expected.pixels)
    assert not np.array_equal(exact.pixels, expected.pixels), "or nothing was in fp8"
