"""What the benchmark compares with, on a tiny checkpoint: both make the picture that the pipeline makes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline

from benchmarks.baseline import HOW, measure

CPU = torch.device("cpu")


def opened(checkpoint: Path) -> Any:
    pipe = Flux2KleinPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("how", HOW)
def test_it_makes_the_same_picture(how: str, checkpoint: Path) -> None:
    arguments: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 1}
    seeded = [{"generator": torch.Generator().manual_seed(0)} for _ in range(2)]
    expected = opened(checkpoint)(prompt="a red circle", **arguments, **seeded[0]).images[0]
    made = HOW[how](opened(checkpoint), CPU, **arguments, **seeded[1])("a red circle")
    assert np.array_equal(np.asarray(made), np.asarray(expected))


@pytest.mark.parametrize("how", HOW)
def test_its_figures(how: str, checkpoint: Path) -> None:
    figures = measure(checkpoint, how, 1 << 30, (64, 64), 1, "cpu")
    assert figures["how"] == how
    assert len(figures["seconds"]) == 3


def test_blocks_of_both_come_one_by_one(checkpoint: Path) -> None:
    pipe = opened(checkpoint)
    HOW["group-offload"](pipe, CPU)
    for module, blocks in ((pipe.transformer, 5), (pipe.text_encoder, 27)):
        offloaded = [one for one in module.modules() if getattr(one, "_diffusers_hook", None) is not None]
        assert len(offloaded) >= blocks


def test_an_encoder_leaves_nothing_on_the_card(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a gradient would need holds on to all weights."""
    made: list[Any] = []
    encode = Flux2KleinPipeline.encode_prompt

    def noted(*arguments: Any, **named: Any) -> Any:
        made.append(encode(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(Flux2KleinPipeline, "encode_prompt", noted)
    measure(checkpoint, "pinned-swap", 1 << 30, (64, 64), 1, "cpu")
    assert made
    assert not any(embeds.requires_grad for embeds, *_ in made)
