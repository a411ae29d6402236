"""What is asked for: text to picture, edits of one reference, compositions of two, and what training never sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from random import Random

from training import captions
from training.scene import BACKGROUNDS, COLOURS, GRID, MAX_ITEMS, SHAPES, SIZES, Cell, Item, Scene

CELLS: tuple[Cell, ...] = tuple((column, row) for row in range(GRID) for column in range(GRID))
ROWS: tuple[tuple[Cell, ...], ...] = (((1, 1),), ((0, 1), (2, 1)), ((0, 1), (1, 1), (2, 1)))
STEP: dict[str, Cell] = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
ROLES = (
    *CELLS,
    *STEP,
    *("alone", "together", "first", "second", "third"),
    *("recolour", "recoloured", "remove", "add", "move", "background", "transfer"),
)
Role = Cell | str
Relation = tuple[int, str, int]
"""Item, where it is, of which item."""


@dataclass(frozen=True, slots=True)
class Task:
    """A caption and what its picture must show. `placed`: whose cell is determined; the others may be anywhere."""

    caption: str
    target: Scene
    references: tuple[Scene, ...] = ()
    placed: tuple[bool, ...] = ()
    relations: tuple[Relation, ...] = ()
    roles: tuple[tuple[Item, Role], ...] = ()
    """Each item that the caption speaks of, and what it says of it."""

    @property
    def held_out(self) -> bool:
        return any(held_out(item.colour, item.shape, role) for item, role in self.roles)


def held_out(colour: str, shape: str, role: Role) -> bool:
    """One of eight combinations. Each pair (colour, shape), (colour, role), (shape, role) is seen in training."""
    number = list(COLOURS).index(colour) + 3 * SHAPES.index(shape) + 5 * ROLES.index(role)
    return number % len(COLOURS) == 0


def make(random: Random, references: int, unseen: bool = False) -> Task:
    """A task with that many references: of the held-out combinations if `unseen`, else never of them."""
    kinds = KINDS[references]
    while True:
        task = random.choice(kinds)(random)
        if task.held_out == unseen:
            return task


def _items(random: Random, cells: Iterable[Cell]) -> tuple[Item, ...]:
    """Items of different names, so that a caption can tell them apart."""
    cells = tuple(cells)
    names: set[tuple[str, str]] = set()
    while len(names) < len(cells):
        names.add((random.choice(list(COLOURS)), random.choice(SHAPES)))
    order = sorted(names)
    random.shuffle(order)
    return tuple(
        Item(colour, shape, _size(random), cell, (random.uniform(-1, 1), random.uniform(-1, 1)))
        for (colour, shape), cell in zip(order, cells, strict=True)
    )


def _size(random: Random) -> str:
    return random.choice(("medium", *SIZES))


def _background(random: Random) -> str:
    return random.choice(("white", *BACKGROUNDS))


def _scene(random: Random, least: int, most: int) -> Scene:
    cells = random.sample(CELLS, random.randint(least, most))
    return Scene(_items(random, cells), _background(random))


def listed(random: Random) -> Task:
    """No places are asked for. Drawn are one item in the center, two side by side, three in a row, as they are named:
    a few steps in which all tokens move at once cannot agree on one of 504 arrangements.
    """
    cells = random.choice(ROWS)
    scene = Scene(_items(random, cells), _background(random))
    role = "alone" if len(cells) == 1 else "together"
    caption = captions.listed(random, scene)
    return Task(caption, scene, placed=(False,) * len(cells), roles=tuple((item, role) for item in scene.items))


def placed(random: Random) -> Task:
    scene = _scene(random, 1, MAX_ITEMS)
    roles = tuple((item, item.cell) for item in scene.items)
    return Task(captions.placed(random, scene), scene, placed=(True,) * len(scene.items), roles=roles)


def related(random: Random) -> Task:
    relation = random.choice(list(STEP))
    scene = Scene(_items(random, _pair_cells(relation)), _background(random))
    first, second = scene.items
    return Task(
        captions.related(random, scene, relation),
        scene,
        placed=(False, False),
        relations=((0, relation, 1),),
        roles=((first, relation), (second, OPPOSITE[relation])),
    )


def _pair_cells(relation: str) -> tuple[Cell, Cell]:
    column, row = STEP[relation]
    return (1 + column, 1 + row), (1 - column, 1 - row)


def lined_up(random: Random) -> Task:
    horizontal = random.random() < 0.5
    cells = [(k, 1) if horizontal else (1, k) for k in range(GRID)]
    scene = Scene(_items(random, cells), _background(random))
    relation = "left" if horizontal else "above"
    return Task(
        captions.lined_up(random, scene, horizontal),
        scene,
        placed=(False,) * GRID,
        relations=((0, relation, 1), (1, relation, 2)),
        roles=tuple(zip(scene.items, ("first", "second", "third"), strict=True)),
    )


def _edit(caption: str, before: Scene, after: Scene, *roles: tuple[Item, Role]) -> Task:
    return Task(caption, after, (before,), (True,) * len(after.items), roles=roles)


def recolour(random: Random) -> Task:
    before = _scene(random, 1, MAX_ITEMS)
    old = random.choice(before.items)
    taken = {item.colour for item in before.items if item.shape == old.shape}
    new = replace(old, colour=random.choice([colour for colour in COLOURS if colour not in taken]))
    after = replace(before, items=tuple(new if item is old else item for item in before.items))
    return _edit(captions.recolour(random, old, new), before, after, (old, "recolour"), (new, "recoloured"))


def remove(random: Random) -> Task:
    before = _scene(random, 2, MAX_ITEMS)
    old = random.choice(before.items)
    after = replace(before, items=tuple(item for item in before.items if item is not old))
    return _edit(captions.remove(random, old), before, after, (old, "remove"))


def add(random: Random) -> Task:
    after = _scene(random, 2, MAX_ITEMS)
    *kept, new = after.items
    before = replace(after, items=tuple(kept))
    return _edit(captions.add(random, new), before, after, (new, "add"), (new, new.cell))


def add_beside(random: Random) -> Task:
    before = _scene(random, 1, MAX_ITEMS - 1)
    taken = {item.cell for item in before.items}
    anchor = random.choice(before.items)
    free = [relation for relation in STEP if (cell := _beside(anchor, relation)) in CELLS and cell not in taken]
    relation = random.choice(free)
    new = _items(random, [_beside(anchor, relation)])[0]
    if new.name in {item.name for item in before.items}:
        return add_beside(random)
    after = replace(before, items=(*before.items, new))
    return _edit(captions.add_beside(random, new, relation, anchor), before, after, (new, "add"), (new, relation))


def _beside(anchor: Item, relation: str) -> Cell:
    return anchor.cell[0] + STEP[relation][0], anchor.cell[1] + STEP[relation][1]


def move(random: Random) -> Task:
    before = _scene(random, 1, MAX_ITEMS)
    old = random.choice(before.items)
    free = [cell for cell in CELLS if cell not in {item.cell for item in before.items}]
    new = replace(old, cell=random.choice(free), shift=(random.uniform(-1, 1), random.uniform(-1, 1)))
    after = replace(before, items=tuple(new if item is old else item for item in before.items))
    return _edit(captions.move(random, new), before, after, (old, "move"), (new, new.cell))


def change_background(random: Random) -> Task:
    before = _scene(random, 1, MAX_ITEMS)
    new = random.choice([background for background in BACKGROUNDS if background != before.background])
    roles = [(item, "background") for item in before.items[:1]]
    return _edit(captions.change_background(random, new), before, replace(before, background=new), *roles)


def _two(random: Random) -> tuple[tuple[Scene, Scene], tuple[Item, Item]]:
    first, second = _items(random, random.choices(CELLS, k=2))
    return (Scene((first,), _background(random)), Scene((second,), _background(random))), (first, second)


def compose(random: Random) -> Task:
    """The background is image 1's unless the caption names one."""
    references, items = _two(random)
    relation = random.choice(list(STEP))
    order = random.choice(((0, 1), (1, 0)))
    background = random.choice((None, None, *BACKGROUNDS))
    cells = _pair_cells(relation)
    shown = tuple(replace(items[k], cell=cell) for k, cell in zip(order, cells, strict=True))
    return Task(
        captions.compose(random, order, relation, background),
        Scene(shown, background or references[0].background),
        references,
        placed=(False, False),
        relations=((0, relation, 1),),
        roles=((shown[0], relation), (shown[1], OPPOSITE[relation])),
    )


def compose_places(random: Random) -> Task:
    references, items = _two(random)
    cells = random.sample(CELLS, 2)
    shown = tuple(replace(item, cell=cell) for item, cell in zip(items, cells, strict=True))
    caption = captions.compose_places(random, cells)
    roles = tuple((item, item.cell) for item in shown)
    return Task(caption, Scene(shown, references[0].background), references, (True, True), roles=roles)


def transfer_colour(random: Random) -> Task:
    references, (first, second) = _two(random)
    new = replace(first, colour=second.colour)
    after = replace(references[0], items=(new,))
    return Task(captions.transfer_colour(random), after, references, (True,), roles=((new, "transfer"),))


def transfer_background(random: Random) -> Task:
    references, (first, _) = _two(random)
    after = replace(references[0], background=references[1].background)
    return Task(captions.transfer_background(random), after, references, (True,), roles=((first, "background"),))


Kind = Callable[[Random], Task]
KINDS: tuple[tuple[Kind, ...], ...] = (
    (listed, placed, related, lined_up),
    (recolour, remove, add, add_beside, move, change_background),
    (compose, compose, compose, compose_places, transfer_colour, transfer_background),
)
"""By the number of references."""
