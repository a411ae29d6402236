"""The whole chain, as a user runs it, on a model too small to be good."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("training")
    command = [sys.executable, "-m", "training", str(out), "--smoke", "--seed", "3"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=240)
    return out


def test_the_checkpoint_has_the_published_layout(trained: Path) -> None:
    checkpoint = trained / "checkpoint"
    index = json.loads((checkpoint / "model_index.json").read_text())
    assert index["_class_name"] == "Flux2KleinPipeline"
    assert index["is_distilled"] is False
    defaults = json.loads((checkpoint / "generation_config.json").read_text())
    assert defaults == {"num_inference_steps": 12, "guidance_scale": 2.0, "size": "128x128"}
    assert json.loads((checkpoint / "text_encoder" / "config.json").read_text())["num_hidden_layers"] == 28
    assert "| 12 | 2 | 24 |" in (trained / "RESULTS.md").read_text()
    assert (checkpoint / "README.md").exists()


def test_diffusers_computes_what_training_computes(trained: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import Flux2KleinPipeline

        from training.evaluate import paint, unseen
        from training.export import load
        from training.scene import draw, drawings

        checkpoint = trained / "checkpoint"
        networks = load(checkpoint)
        pipeline = Flux2KleinPipeline.from_pretrained(checkpoint, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        task = unseen(2, 1)[0]
        pictures = [draw(drawings([scene], 128, 128))[0] for scene in task.references]
        references = [Image.fromarray((p.permute(1, 2, 0) * 255).round().byte().numpy()) for p in pictures]
        expected = pipeline(
            prompt=task.caption,
            image=references,
            width=128,
            height=128,
            num_inference_steps=2,
            guidance_scale=2.0,
            max_sequence_length=64,
            generator=torch.Generator("cpu").manual_seed(5),
            output_type="pt",
        ).images
    torch.testing.assert_close(paint(networks, [task], 128, 128, 2, 2.0, seed=5), expected, atol=2e-3, rtol=0)
