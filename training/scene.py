"""What is drawn: coloured shapes on a plain background, from signed distances, in batches, on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLOURS = {
    "red": (220, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 50),
    "green": (40, 160, 70),
    "cyan": (60, 210, 230),
    "blue": (40, 80, 220),
    "purple": (130, 50, 170),
    "pink": (245, 150, 200),
}
BACKGROUNDS = {
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "gray": (128, 128, 128),
    "navy": (20, 25, 80),
    "brown": (95, 60, 35),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star")
SIZES = {"small": 8.0, "medium": 12.0, "large": 16.0}
GRID = 3
MAX_ITEMS = 3
REACH = 1.2
"""No shape extends further from its centre than this multiple of its radius."""

Cell = tuple[int, int]
"""Column and row of the 3 x 3 grid that every picture is divided into."""


@dataclass(frozen=True, slots=True)
class Item:
    """`shift`: where in its cell the item is, from -1 to 1 on each axis."""

    colour: str
    shape: str
    size: str = "medium"
    cell: Cell = (1, 1)
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def radius(self) -> float:
        return SIZES[self.size]

    def centre(self, width: int, height: int) -> tuple[float, float]:
        x, y = (self._along(axis, extent) for axis, extent in enumerate((width, height)))
        return x, y

    def _along(self, axis: int, extent: int) -> float:
        half = extent / GRID / 2
        slack = min(4.0, half - REACH * self.radius - 1)
        return (2 * self.cell[axis] + 1) * half + slack * self.shift[axis]


@dataclass(frozen=True, slots=True)
class Scene:
    items: tuple[Item, ...]
    background: str = "white"


@dataclass(frozen=True, slots=True)
class Drawings:
    """Scenes as numbers. `items`: [batch, MAX_ITEMS, red green blue shape x y radius]; `backgrounds`: [batch, 3]."""

    items: Tensor
    backgrounds: Tensor
    width: int
    height: int

    def to(self, device: torch.device | str) -> Drawings:
        items, backgrounds = (t.to(device, non_blocking=True) for t in (self.items, self.backgrounds))
        return Drawings(items, backgrounds, self.width, self.height)


def drawings(scenes: Sequence[Scene], width: int, height: int) -> Drawings:
    rows = [[_row(item, width, height) for item in scene.items] for scene in scenes]
    padded = [row + [[0.0] * 7] * (MAX_ITEMS - len(row)) for row in rows]
    backgrounds = [BACKGROUNDS[scene.background] for scene in scenes]
    return Drawings(torch.tensor(padded), torch.tensor(backgrounds, dtype=torch.float32) / 255, width, height)


def _row(item: Item, width: int, height: int) -> list[float]:
    colour = [channel / 255 for channel in COLOURS[item.colour]]
    return [*colour, float(SHAPES.index(item.shape)), *item.centre(width, height), item.radius]


def draw(these: Drawings) -> Tensor:
    """Pictures [batch, 3, height, width] from 0 to 1."""
    picture = these.backgrounds[:, :, None, None].expand(-1, -1, these.height, these.width)
    x, y = pixel_centres(these.width, these.height, these.items.device)
    for item in these.items.unbind(1):
        colour, (shape, cx, cy, radius) = item[:, :3, None, None], item[:, 3:, None, None].unbind(1)
        inside = coverages(x - cx, y - cy, radius)
        mask = inside.gather(1, shape[:, None].long().expand(-1, 1, *inside.shape[2:])) * (radius > 0)[:, None]
        picture = picture + mask * (colour - picture)
    return picture


def pixel_centres(width: int, height: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    x = torch.arange(width, device=device) + 0.5
    y = torch.arange(height, device=device) + 0.5
    return x[None, None, :], y[None, :, None]


def coverages(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """How much of each pixel every shape covers: [batch, shape, height, width]. x, y: from the shape's centre."""
    distances = [_circle, _square, _triangle, _diamond, _star]
    return torch.stack([(0.5 - distance(x, y, radius)).clamp(0, 1) for distance in distances], dim=1)


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - radius


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.88 * radius


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Equilateral, pointing up, its centroid at the centre."""
    return torch.maximum(y, math.sqrt(3) / 2 * x.abs() - y / 2) - 0.6 * radius


def _diamond(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (x.abs() + y.abs() - 1.15 * radius) / math.sqrt(2)


def _star(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Five points, one up: the plane is folded on the star's axes, then the distance is taken to one edge."""
    outer, inner = REACH * radius, 0.45
    c, s = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x, y = x.abs(), -y
    for side in (1, -1):
        beyond = 2 * (side * c * x - s * y).clamp(min=0)
        x, y = x - beyond * side * c, y + beyond * s
    x, y = x.abs(), y - outer
    ex, ey = inner * s, inner * c - 1
    along = ((x * ex + y * ey) / (ex * ex + ey * ey)).clamp(min=0).minimum(outer)
    return torch.hypot(x - ex * along, y - ey * along) * torch.sign(y * ex - x * ey)


AREAS = (math.pi, 4 * 0.88**2, 0.75 * math.sqrt(3) * REACH**2, 2 * 1.15**2, 5 * 0.45 * REACH**2 * math.sin(math.pi / 5))
"""Of each shape at radius 1."""
