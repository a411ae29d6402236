"""Figures on tasks that training never saw, by steps and guidance, and a sheet of pictures.

python -m training.evaluate CHECKPOINT OUT [--prompts N] [--deep]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import torch
from PIL import Image
from torch import Tensor

from training.data import CANVASES
from training.export import load
from training.flow import sample
from training.judge import Verdict, judge
from training.model_card import card
from training.models import Networks
from training.scene import draw, drawings
from training.tasks import Task, make

KINDS = ("text", "one reference", "two references")
STEPS = (2, 4, 8, 12)
GUIDANCES = (1.0, 2.0, 3.0)
BATCH = 500


def unseen(references: int, count: int, seed: int = 1) -> list[Task]:
    random = Random(f"unseen/{references}/{seed}")
    return [make(random, references, unseen=True) for _ in range(count)]


def paint(
    networks: Networks, tasks: Sequence[Task], width: int, height: int, steps: int, guidance: float, seed: int = 0
) -> Tensor:
    """All tasks with the same number of references."""
    device = networks.transformer.device
    shown = zip(*(task.references for task in tasks), strict=True)
    references = [draw(drawings(scenes, width, height).to(device)) for scenes in shown]
    captions = [task.caption for task in tasks]
    return sample(networks, captions, references, width, height, steps, guidance, seed)


def verdicts(
    networks: Networks, tasks: Sequence[Task], width: int, height: int, steps: int, guidance: float
) -> Iterator[Verdict]:
    for start in range(0, len(tasks), BATCH):
        part = tasks[start : start + BATCH]
        yield from judge(paint(networks, part, width, height, steps, guidance, seed=start), part)


def accuracy(
    networks: Networks, tasks: Sequence[Task], steps: int, guidance: float, width: int = 128, height: int = 128
) -> float:
    return sum(v.right for v in verdicts(networks, tasks, width, height, steps, guidance)) / len(tasks)


def progress(networks: Networks, count: int = 100) -> str:
    """One line, while training."""
    figures = [accuracy(networks, unseen(k, count), steps=8, guidance=1.0) for k in range(3)]
    return " ".join(f"{kind} {figure:.3f}" for kind, figure in zip(KINDS, figures, strict=True))


def table(networks: Networks, count: int, steps: Sequence[int], guidances: Sequence[float]) -> str:
    tasks = [unseen(k, count) for k in range(3)]
    rows = ["| steps | guidance | passes | " + " | ".join(KINDS) + " |", "| --- " * 6 + "|"]
    for guidance in guidances:
        for number in steps:
            figures = [accuracy(networks, these, number, guidance) for these in tasks]
            passes = number * (2 if guidance > 1 else 1)
            rows.append(f"| {number} | {guidance:g} | {passes} | {_percent(figures)} |")
            print(rows[-1], flush=True)
    return "\n".join(rows)


def canvas_table(networks: Networks, count: int, steps: int, guidance: float) -> str:
    rows = ["| size | " + " | ".join(KINDS) + " |", "| --- " * 4 + "|"]
    for width, height in CANVASES:
        figures = [accuracy(networks, unseen(k, count), steps, guidance, width, height) for k in range(3)]
        rows.append(f"| {width}x{height} | {_percent(figures)} |")
    return "\n".join(rows)


def _percent(figures: Sequence[float]) -> str:
    return " | ".join(f"{100 * figure:.1f} %" for figure in figures)


def mistakes(networks: Networks, count: int, steps: int, guidance: float) -> str:
    lines = []
    for references in range(3):
        tasks = unseen(references, count)
        wrong = zip(tasks, verdicts(networks, tasks, 128, 128, steps, guidance), strict=True)
        lines += [f"{task.caption!r}: {', '.join(v.faults)}" for task, v in wrong if not v.right]
    return "\n".join(lines)


def sheet(networks: Networks, path: Path, steps: int, guidance: float, count: int = 12) -> None:
    """One row for each number of references: the references above, the picture below; the captions beside it."""
    rows, captions = [], []
    for references in range(3):
        tasks = unseen(references, count, seed=2026)
        made = paint(networks, tasks, 128, 128, steps, guidance, seed=2026).cpu()
        rows += [draw(drawings([task.references[k] for task in tasks], 128, 128)) for k in range(references)]
        rows.append(made)
        captions += [f"{v.right} {t.caption} {v.faults}" for t, v in zip(tasks, judge(made, tasks), strict=True)]
    grid = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    Image.fromarray((grid.permute(1, 2, 0) * 255).round().byte().numpy()).save(path)
    path.with_suffix(".txt").write_text("\n".join(captions) + "\n")


def report(networks: Networks, checkpoint: Path, out: Path, prompts: int, deep: bool) -> None:
    """At the checkpoint's own defaults: pictures, mistakes, RESULTS.md, and the card beside the weights."""
    defaults = json.loads((checkpoint / "generation_config.json").read_text())
    steps, guidance = defaults["num_inference_steps"], defaults["guidance_scale"]
    sheet(networks, out / "sheet.png", steps, guidance, 12 if deep else 2)
    (out / "mistakes.txt").write_text(mistakes(networks, min(prompts, 250), steps, guidance) + "\n")
    text = results(networks, prompts, steps, guidance, deep)
    (out / "RESULTS.md").write_text(text)
    (checkpoint / "README.md").write_text(card(text))


def results(networks: Networks, count: int, steps: int, guidance: float, deep: bool = True) -> str:
    start = time.monotonic()
    every = table(networks, count, STEPS if deep else (steps,), GUIDANCES if deep else (guidance,))
    canvases = canvas_table(networks, count if deep else max(1, count // 4), steps, guidance)
    print(f"evaluated in {time.monotonic() - start:.0f} s", flush=True)
    return (
        f"# Results\n\n{count} prompts of each kind, all of combinations held out from training. Right: the judge\n"
        "found every object with its colour, shape, size and place, nothing else, and the background.\n\n"
        f"## At 128x128\n\n{every}\n\n## Other sizes, {steps} steps, guidance {guidance:g}\n\n{canvases}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=1000, help="of each kind")
    parser.add_argument("--deep", action="store_true", help="all steps and guidances, not only the defaults")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    networks = load(options.checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    report(networks, options.checkpoint, options.out, options.prompts, options.deep)


if __name__ == "__main__":
    main()
