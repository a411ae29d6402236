"""Is the picture right? Knows no model: finds the blobs of a picture, measures each, compares with what was asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.scene import AREAS, BACKGROUNDS, COLOURS, GRID, SHAPES, SIZES, Cell, Item, coverages, pixel_centres
from training.tasks import Task

CONTRAST = 40 / 255
"""A pixel further than this from the background belongs to an object."""
COLOUR_TOLERANCE = 55 / 255
LEAST_AREA = 24
LEAST_FIT = 0.8
"""Intersection over union with the ideal shape of the same area and centre."""
LEAST_PURITY = 0.85
CHUNK = 512


@dataclass(frozen=True, slots=True)
class Found:
    """One blob; a word is None where nothing fits."""

    colour: str | None
    shape: str | None
    size: str
    x: float
    y: float

    def cell(self, width: int, height: int) -> Cell:
        return min(int(self.x * GRID / width), GRID - 1), min(int(self.y * GRID / height), GRID - 1)


@dataclass(frozen=True, slots=True)
class Seen:
    background: str | None
    blobs: tuple[Found, ...]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """`faults`: what is wrong, in words."""

    faults: tuple[str, ...]

    @property
    def right(self) -> bool:
        return not self.faults


def judge(pictures: Tensor, tasks: Sequence[Task]) -> list[Verdict]:
    """pictures: [batch, 3, height, width] from 0 to 1, one for each task."""
    return [verdict(seen, task) for seen, task in zip(look(pictures), tasks, strict=True)]


def verdict(seen: Seen, task: Task) -> Verdict:
    faults = [] if seen.background == task.target.background else [f"background is {seen.background}"]
    blobs = list(seen.blobs)
    matches = [_take(blobs, item) for item in task.target.items]
    for item, match, placed in zip(task.target.items, matches, task.placed, strict=True):
        if match is None:
            faults.append(f"no {item.name}")
            continue
        if match.size != item.size:
            faults.append(f"{item.name} is {match.size}")
        if placed and match.cell(seen.width, seen.height) != item.cell:
            faults.append(f"{item.name} is elsewhere")
    for first, relation, second in task.relations:
        a, b = matches[first], matches[second]
        if a and b and not _holds(a, relation, b):
            faults.append(f"{task.target.items[first].name} is not {relation}")
    faults += [f"extra {blob.colour} {blob.shape}" for blob in blobs]
    return Verdict(tuple(faults))


def _take(blobs: list[Found], item: Item) -> Found | None:
    for blob in blobs:
        if (blob.colour, blob.shape) == (item.colour, item.shape):
            blobs.remove(blob)
            return blob
    return None


def _holds(a: Found, relation: str, b: Found) -> bool:
    right, down = b.x - a.x, b.y - a.y
    if abs(right) < abs(down) if relation in ("left", "right") else abs(down) < abs(right):
        return False
    return {"left": right, "right": -right, "above": down, "below": -down}[relation] > 0


def look(pictures: Tensor) -> list[Seen]:
    height, width = pictures.shape[-2:]
    ground = _border(pictures).median(dim=-1).values
    apart = (pictures - ground[:, :, None, None]).norm(dim=1) > CONTRAST
    labels = components(apart)
    blobs: list[list[Found]] = [[] for _ in pictures]
    owners, numbers = _large(labels)
    for start in range(0, len(owners), CHUNK):
        chunk = owners[start : start + CHUNK]
        masks = labels[chunk] == numbers[start : start + CHUNK, None, None]
        for owner, found in zip(chunk.tolist(), _measure(pictures[chunk], ground[chunk], masks), strict=True):
            blobs[owner].append(found)
    names = _nearest(ground, BACKGROUNDS)
    return [Seen(name, tuple(found), width, height) for name, found in zip(names, blobs, strict=True)]


def _border(pictures: Tensor) -> Tensor:
    """The frame of one pixel, flattened: [batch, 3, pixels]."""
    sides = (pictures[..., 0, :], pictures[..., -1, :], pictures[..., 0], pictures[..., -1])
    return torch.cat(sides, dim=-1)


def components(masks: Tensor) -> Tensor:
    """A number for every 8-connected component of each mask [batch, height, width]; 0 outside."""
    start = torch.arange(1, masks[0].numel() + 1, device=masks.device, dtype=torch.float32)
    labels = start.view(masks.shape[1:]) * masks
    while True:
        grown = labels
        for _ in range(8):
            grown = F.max_pool2d(grown, 3, stride=1, padding=1) * masks
        if torch.equal(grown, labels):
            return labels.long()
        labels = grown


def _large(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which pictures have which components of at least LEAST_AREA pixels."""
    count = labels[0].numel() + 1
    offset = torch.arange(len(labels), device=labels.device)[:, None, None] * count
    areas = (labels + offset).flatten().bincount(minlength=len(labels) * count).view(-1, count)
    areas[:, 0] = 0
    owners, numbers = (areas >= LEAST_AREA).nonzero(as_tuple=True)
    return owners, numbers


def _measure(pictures: Tensor, ground: Tensor, masks: Tensor) -> Iterator[Found]:
    inside = -F.max_pool2d(-masks.float(), 3, stride=1, padding=1)
    weight = inside / inside.sum((1, 2), keepdim=True).clamp(min=1)
    colour = (pictures * weight[:, None]).sum((2, 3))
    spread = (pictures - colour[:, :, None, None]).norm(dim=1)
    purity = ((spread < COLOUR_TOLERANCE) * weight).sum((1, 2))
    near = F.max_pool2d(masks.float(), 3, stride=1, padding=1)
    cover = _coverage(pictures, ground, colour) * near
    area, x, y, fits = _fit(cover)
    fit, shape = fits.max(dim=1)
    hues = _nearest(colour, COLOURS)
    rows = torch.stack([area, x, y, purity, fit, shape], dim=1).tolist()
    for hue, (pixels, cx, cy, pure, matching, kind) in zip(hues, rows, strict=True):
        size = _size((pixels / AREAS[int(kind)]) ** 0.5)
        named = SHAPES[int(kind)] if matching >= LEAST_FIT else None
        yield Found(hue if pure >= LEAST_PURITY else None, named, size, cx, cy)


def _coverage(pictures: Tensor, ground: Tensor, colour: Tensor) -> Tensor:
    """How far each pixel is on the way from the background to the object's colour: undoes the anti-aliasing."""
    way = (colour - ground)[:, :, None, None]
    along = ((pictures - ground[:, :, None, None]) * way).sum(1)
    return (along / way.square().sum(1).clamp(min=1e-6)).clamp(0, 1)


def _fit(cover: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Area, centroid, and how well each shape fits: [batch, shape]."""
    px, py = pixel_centres(cover.shape[2], cover.shape[1], cover.device)
    area = cover.sum((1, 2)).clamp(min=1)
    x, y = ((cover * p).sum((1, 2)) / area for p in (px, py))
    fits = []
    for shape, unit in enumerate(AREAS):
        radius = (area / unit).sqrt()[:, None, None]
        ideal = coverages(px - x[:, None, None], py - y[:, None, None], radius)[:, shape]
        fits.append(torch.minimum(ideal, cover).sum((1, 2)) / torch.maximum(ideal, cover).sum((1, 2)))
    return area, x, y, torch.stack(fits, dim=1)


def _nearest(colours: Tensor, palette: dict[str, tuple[int, int, int]]) -> list[str | None]:
    values = torch.tensor(list(palette.values()), device=colours.device) / 255
    names = list(palette)
    nearest = torch.cdist(colours, values).min(dim=1)
    pairs = zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True)
    return [names[index] if distance < COLOUR_TOLERANCE else None for distance, index in pairs]


def _size(radius: float) -> str:
    return min(SIZES, key=lambda name: abs(SIZES[name] - radius))
