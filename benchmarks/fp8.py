"""Measures the error of fp8: the bundled model with and without it, otherwise in fp32, on prompts outside its training.

    python -m benchmarks.fp8 [--prompts 200] [--output FILE.json]

On a CPU the products are emulated: the errors match a GPU's, the seconds do not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightx2v.checkpoint import read_spec
from lightx2v.config import EngineSettings
from lightx2v.pipeline import Pipeline
from lightx2v.types import GenerateRequest
from training.evaluate import unseen
from training.judge import judge
from training.tasks import Task


@dataclass(frozen=True)
class Made:
    """The results for one prompt: the transformer's first output, and the picture, [3, height, width] from 0 to 1."""

    velocity: torch.Tensor
    picture: torch.Tensor


def make(tasks: Sequence[Task], *, fp8: bool) -> Iterator[Made]:
    """Each at the model's defaults, with a seed of its own."""
    settings = EngineSettings(dtype="float32", device="cpu", fp8=fp8)
    spec = read_spec(settings)
    said: list[torch.Tensor] = []
    with closing(Pipeline(settings)) as pipeline:
        transformer = pipeline._stages["denoise"].component.module
        transformer.register_forward_hook(lambda _module, _inputs, output: said.append(output))
        for seed, task in enumerate(tasks):
            said.clear()
            request = GenerateRequest("fp8", task.caption, spec.size, spec.steps, seed, spec.guidance)
            pixels = torch.from_numpy(pipeline.generate(request).pixels)
            yield Made(said[0], pixels.permute(2, 0, 1) / 255)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def psnr(found: torch.Tensor, expected: torch.Tensor) -> float:
    """In dB, of values from 0 to 1."""
    return -10 * math.log10(max((found - expected).square().mean().item(), 1e-10))


def share_right(made: Sequence[Made], tasks: Sequence[Task]) -> float:
    verdicts = judge(torch.stack([one.picture for one in made]), tasks)
    return sum(verdict.right for verdict in verdicts) / len(tasks)


def measure(count: int) -> dict[str, Any]:
    tasks = unseen(0, count)
    plain, coarse = ([*make(tasks, fp8=fp8)] for fp8 in (False, True))
    pairs = list(zip(coarse, plain, strict=True))
    pixels = [(found.picture - expected.picture).abs().mean().item() for found, expected in pairs]
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "prompts": count,
        "velocity_relative_error": _middle(relative(found.velocity, expected.velocity) for found, expected in pairs),
        "pixel_mean_difference": _middle(255 * difference for difference in pixels),
        "psnr_db": _middle(psnr(found.picture, expected.picture) for found, expected in pairs),
        "right": share_right(plain, tasks),
        "right_fp8": share_right(coarse, tasks),
    }


def _middle(values: Iterable[float]) -> dict[str, float]:
    """The median, and what a tenth of them is below and above."""
    ordered = sorted(values)
    tenth = len(ordered) // 10
    return {"p10": ordered[tenth], "p50": ordered[len(ordered) // 2], "p90": ordered[-1 - tenth]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result = json.dumps(measure(options.prompts), indent=1)
    print(result)
    if options.output:
        options.output.write_text(result + "\n")


if __name__ == "__main__":
    main()
