"""Batches, made by worker processes: captions as tokens, scenes as numbers. The device draws them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import Qwen2Tokenizer

from training.flow import tokenize
from training.scene import drawings
from training.tasks import make

CANVASES = ((128, 128), (192, 128), (128, 192))
CANVAS_WEIGHTS = (5, 1, 1)
REFERENCE_WEIGHTS = (9, 7, 6)
CAPTION_DROPOUT = 0.1


@dataclass(frozen=True, slots=True)
class Batch:
    """`key`: width, height, number of references. `inputs`: token ids, mask, then the pictures, target first."""

    key: tuple[int, int, int]
    inputs: tuple[Tensor, ...]

    def pin_memory(self) -> Batch:
        return Batch(self.key, tuple(value.pin_memory() for value in self.inputs))


def corpus(seed: int, size: int = 9000) -> list[str]:
    random = Random(seed)
    return [make(random, k % 3).caption for k in range(size)]


def batches(tokenizer: Qwen2Tokenizer, size: int, workers: int, seed: int) -> Iterator[Batch]:
    pinned = workers > 0 and torch.cuda.is_available()
    made = _Batches(tokenizer, size, seed)
    return iter(DataLoader(made, batch_size=None, num_workers=workers, pin_memory=pinned))


class _Batches(IterableDataset[Batch]):
    """Endless. All of a batch have the same canvas and number of references."""

    def __init__(self, tokenizer: Qwen2Tokenizer, size: int, seed: int) -> None:
        self.tokenizer, self.size, self.seed = tokenizer, size, seed

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        torch.set_num_threads(1)
        random = Random(f"{self.seed}/{worker.id if worker else 0}")
        while True:
            yield self._batch(random)

    def _batch(self, random: Random) -> Batch:
        references = random.choices(range(3), REFERENCE_WEIGHTS)[0]
        canvas = random.choices(CANVASES, CANVAS_WEIGHTS)[0]
        tasks = [make(random, references) for _ in range(self.size)]
        captions = ["" if random.random() < CAPTION_DROPOUT else task.caption for task in tasks]
        ids, mask = tokenize(self.tokenizer, captions)
        shown = [[task.target for task in tasks], *([task.references[k] for task in tasks] for k in range(references))]
        numbers = [drawings(scenes, *canvas) for scenes in shown]
        return Batch((*canvas, references), (ids, mask, *(t for d in numbers for t in (d.items, d.backgrounds))))
