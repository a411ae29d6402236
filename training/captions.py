"""How it is said, in several phrasings. An item without a size is medium, a picture without a background is white."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from training.scene import Cell, Item, Scene

PLACES: dict[Cell, tuple[str, ...]] = {
    (0, 0): ("in the top left corner", "in the top left"),
    (1, 0): ("at the top", "at the top center"),
    (2, 0): ("in the top right corner", "in the top right"),
    (0, 1): ("on the left", "on the left side"),
    (1, 1): ("in the center", "in the middle", "in the centre"),
    (2, 1): ("on the right", "on the right side"),
    (0, 2): ("in the bottom left corner", "in the bottom left"),
    (1, 2): ("at the bottom", "at the bottom center"),
    (2, 2): ("in the bottom right corner", "in the bottom right"),
}
RELATIONS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}


def _finish(random: Random, text: str) -> str:
    if random.random() < 0.2:
        text = text[0].upper() + text[1:]
    return text + "." if random.random() < 0.1 else text


def _a(random: Random, item: Item) -> str:
    named = item.size != "medium" or random.random() < 0.2
    words = f"{item.size} {item.name}" if named else item.name
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _on(random: Random, background: str) -> str:
    if background == "white" and random.random() < 0.5:
        return ""
    forms = (" on a {} background", " with a {} background", " on {}", ", {} background")
    return random.choices(forms, (5, 2, 1, 1))[0].format(background)


def _picture(random: Random, content: str, scene: Scene) -> str:
    prefix = random.choices(("", "a picture of ", "draw "), (8, 1, 1))[0]
    return _finish(random, prefix + content + _on(random, scene.background))


def listed(random: Random, scene: Scene) -> str:
    return _picture(random, _list([_a(random, item) for item in scene.items]), scene)


def placed(random: Random, scene: Scene) -> str:
    parts = [f"{_a(random, item)} {random.choice(PLACES[item.cell])}" for item in scene.items]
    return _picture(random, _list(parts), scene)


def related(random: Random, scene: Scene, relation: str) -> str:
    first, second = (_a(random, item) for item in scene.items)
    return _picture(random, f"{first} {random.choice(RELATIONS[relation])} {second}", scene)


def lined_up(random: Random, scene: Scene, horizontal: bool) -> str:
    order = "from left to right" if horizontal else "from top to bottom"
    content = _list([_a(random, item) for item in scene.items])
    if random.random() < 0.5:
        return _finish(random, f"{order}: {content}{_on(random, scene.background)}")
    return _picture(random, f"{content} {order}", scene)


def recolour(random: Random, old: Item, new: Item) -> str:
    forms = (
        "make the {old} {new}",
        "turn the {old} {new}",
        "change the {old} to {new}",
        "change the color of the {old} to {new}",
        "change the colour of the {old} to {new}",
    )
    return _finish(random, random.choice(forms).format(old=old.name, new=new.colour))


def remove(random: Random, old: Item) -> str:
    return _finish(random, f"{random.choice(('remove', 'delete', 'erase', 'take away'))} the {old.name}")


def add(random: Random, new: Item) -> str:
    verb = random.choice(("add", "put", "draw"))
    return _finish(random, f"{verb} {_a(random, new)} {random.choice(PLACES[new.cell])}")


def add_beside(random: Random, new: Item, relation: str, anchor: Item) -> str:
    verb = random.choice(("add", "put", "draw"))
    return _finish(random, f"{verb} {_a(random, new)} {random.choice(RELATIONS[relation])} the {anchor.name}")


def move(random: Random, new: Item) -> str:
    place = random.choice(PLACES[new.cell])
    if random.random() < 0.3:
        return _finish(random, f"put the {new.name} {place}")
    return _finish(random, f"move the {new.name} to {place.split(' ', 1)[1]}")


def change_background(random: Random, new: str) -> str:
    forms = ("make the background {}", "change the background to {}", "put it on a {} background", "{} background")
    return _finish(random, random.choice(forms).format(new))


def _object(random: Random, image: int) -> str:
    return f"the {random.choice(('object', 'shape'))} {random.choice(('of', 'from', 'in'))} image {image + 1}"


def compose(random: Random, order: Sequence[int], relation: str, background: str | None) -> str:
    first, second = (_object(random, image) for image in order)
    content = f"{random.choice(('', 'put ', 'place '))}{first} {random.choice(RELATIONS[relation])} {second}"
    return _finish(random, content + (f" on a {background} background" if background else ""))


def compose_places(random: Random, cells: Sequence[Cell]) -> str:
    parts = [f"{_object(random, image)} {random.choice(PLACES[cell])}" for image, cell in enumerate(cells)]
    if random.random() < 0.5:
        parts.reverse()
    return _finish(random, random.choice(("", "put ")) + _list(parts))


def transfer_colour(random: Random) -> str:
    colour = random.choice(("color", "colour"))
    return _finish(random, f"{_object(random, 0)} in the {colour} of {_object(random, 1)}")


def transfer_background(random: Random) -> str:
    return _finish(random, f"{_object(random, 0)} on the background of image 2")
