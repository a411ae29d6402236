"""Pictures of the bundled model as it is served: the first of a fixed list, unselected.

python -m training.gallery FOLDER: writes them, and a page of them, into an empty folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from lightx2v.checkpoint import read_spec
from lightx2v.config import EngineSettings
from lightx2v.core import GenerateRequest, Picture, Reference, Size
from lightx2v.pipeline import Pipeline
from training.scene import Scene, draw, drawings
from training.tasks import KINDS, Task

LIST = 2026
"""The seed of the lists, and of every picture."""
TITLES = ("Text", "One reference", "Two references")
COUNTS = (12, 6, 6)
"""By the number of references."""
COLUMNS = 3
SIDE = 128


def fixed_list(references: int, count: int) -> Iterator[Task]:
    """Every kind of task in turn, of combinations that training never saw."""
    random = Random(f"gallery/{references}/{LIST}")
    for kind in islice(cycle(dict.fromkeys(KINDS[references])), count):
        yield next(task for task in iter(partial(kind, random), None) if task.held_out)


def drawn(scene: Scene) -> Picture:
    picture = draw(drawings([scene], SIDE, SIDE))[0].permute(1, 2, 0)
    return Picture((picture * 255).round().byte().numpy())


def request(task: Task, settings: EngineSettings, seed: int = LIST) -> GenerateRequest:
    """As a client that names nothing but a prompt, references and a seed."""
    spec = read_spec(settings)
    sizes = (Size(SIDE, SIDE),) * len(task.references)
    return GenerateRequest(
        "gallery", task.caption, spec.edit_size(sizes), spec.steps, seed, spec.guidance, references=sizes
    )


def strips(pipeline: Pipeline, settings: EngineSettings, references: int) -> Iterator[tuple[str, Image.Image]]:
    """Captions; their references and what came out, side by side."""
    for task in fixed_list(references, COUNTS[references]):
        shown = [drawn(scene) for scene in task.references]
        made = pipeline.generate(request(task, settings), [Reference(picture) for picture in shown])
        yield task.caption, Image.fromarray(np.concatenate([p.pixels for p in (*shown, made)], axis=1))


def page(folder: Path) -> str:
    settings = EngineSettings()
    pipeline = Pipeline(settings)
    parts = ["# What the bundled model makes", f"Prompts of combinations that training never saw, seed {LIST}."]
    for references, title in enumerate(TITLES):
        cells = []
        for number, (caption, strip) in enumerate(strips(pipeline, settings, references)):
            name = f"{references}-{number:02}.png"
            strip.save(folder / name)
            cells.append(f"![]({name})<br>{caption}")
        parts += [f"## {title}", table(cells)]
    return "\n\n".join(parts) + "\n"


def table(cells: Sequence[str]) -> str:
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    lines = ["| " * COLUMNS + "|", "| --- " * COLUMNS + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.gallery")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(page(folder))


if __name__ == "__main__":
    main()
