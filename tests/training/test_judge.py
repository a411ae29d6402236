"""The judge must pass what was asked for and find every kind of fault."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

from training.data import CANVASES
from training.judge import Verdict, judge
from training.scene import COLOURS, SHAPES, SIZES, Item, Scene, draw, drawings
from training.tasks import Task, make

CIRCLE = Item("red", "circle", cell=(0, 1))
SQUARE = Item("blue", "square", "large", cell=(2, 1))
ASKED = Task(
    "a red circle to the left of a large blue square",
    Scene((CIRCLE, SQUARE), "gray"),
    placed=(False, False),
    relations=((0, "left", 1),),
)
PLACED = replace(ASKED, placed=(True, True), relations=())


def verdict(shown: Scene, task: Task = ASKED) -> Verdict:
    return judge(draw(drawings([shown], 128, 128)), [task])[0]


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("references", range(3))
def test_right_pictures_pass(canvas: tuple[int, int], references: int) -> None:
    random = Random(references)
    tasks = [make(random, references, unseen=random.random() < 0.5) for _ in range(24)]
    pictures = draw(drawings([task.target for task in tasks], *canvas))
    assert [v.faults for v in judge(pictures, tasks)] == [()] * len(tasks)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_and_colour_is_told_apart(shape: str, size: str) -> None:
    for colour in COLOURS:
        task = Task("", Scene((Item(colour, shape, size),)), placed=(True,))
        others = [Scene((Item(colour, other, size),)) for other in SHAPES]
        others += [Scene((Item(other, shape, size),)) for other in COLOURS if other != colour]
        right = [v.right for v in judge(draw(drawings(others, 128, 128)), [task] * len(others))]
        assert right == [other == shape for other in SHAPES] + [False] * (len(COLOURS) - 1)


@pytest.mark.parametrize(
    ("shown", "fault"),
    [
        (Scene((replace(CIRCLE, colour="green"), SQUARE), "gray"), "no red circle"),
        (Scene((replace(CIRCLE, shape="star"), SQUARE), "gray"), "no red circle"),
        (Scene((replace(CIRCLE, size="large"), SQUARE), "gray"), "red circle is large"),
        (Scene((SQUARE,), "gray"), "no red circle"),
        (Scene((CIRCLE, SQUARE, Item("pink", "star", cell=(1, 0))), "gray"), "extra pink star"),
        (Scene((CIRCLE, SQUARE, replace(CIRCLE, cell=(1, 0))), "gray"), "extra red circle"),
        (Scene((CIRCLE, SQUARE), "navy"), "background is navy"),
        (Scene((replace(CIRCLE, cell=(2, 1)), replace(SQUARE, cell=(0, 1))), "gray"), "red circle is not left"),
        (Scene((replace(CIRCLE, cell=(1, 0)), replace(SQUARE, cell=(1, 2))), "gray"), "red circle is not left"),
        (Scene((), "gray"), "no blue square"),
    ],
)
def test_wrong_pictures_fail(shown: Scene, fault: str) -> None:
    assert fault in verdict(shown).faults


def test_wrong_place_fails() -> None:
    moved = Scene((replace(CIRCLE, cell=(0, 0)), SQUARE), "gray")
    assert verdict(moved).right
    assert verdict(moved, PLACED).faults == ("red circle is elsewhere",)


def test_two_colours_in_one_object_fail() -> None:
    picture = draw(drawings([ASKED.target], 128, 128))
    x, y = CIRCLE.centre(128, 128)
    half = picture[..., int(x) :, :][..., : int(x) - 20]
    assert half.numel()
    top = picture[:, :, : int(y), : int(2 * x)]
    red = (top - torch.tensor(COLOURS["red"]).view(1, 3, 1, 1) / 255).norm(dim=1, keepdim=True) < 0.1
    top.copy_(torch.where(red, torch.tensor([0.2, 0.6, 0.3]).view(1, 3, 1, 1), top))
    assert "no red circle" in judge(picture, [ASKED])[0].faults


def test_noise_and_blur_fail() -> None:
    picture = draw(drawings([ASKED.target], 128, 128))
    noise = torch.rand(picture.shape, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(picture, 25, stride=1, padding=12, count_include_pad=False)
    assert not any(v.right for v in judge(torch.cat([noise, blurred]), [ASKED] * 2))
