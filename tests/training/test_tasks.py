"""The grammar: what training sees, what it never sees, and that captions say what pictures show."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from training.data import corpus
from training.models import CHAT_TEMPLATE, MAX_TOKENS, PROMPT, _tokenizer
from training.scene import COLOURS, SHAPES, SIZES
from training.tasks import ROLES, held_out, make


@pytest.mark.parametrize("references", range(3))
def test_training_never_sees_held_out_combinations(references: int) -> None:
    random = Random(0)
    seen = {(i.colour, i.shape, role) for _ in range(3000) for i, role in make(random, references).roles}
    assert not any(held_out(*combination) for combination in seen)
    asked = [make(random, references, unseen=True) for _ in range(300)]
    assert all(any(held_out(i.colour, i.shape, role) for i, role in task.roles) for task in asked)


def test_an_eighth_is_held_out_and_every_pair_is_seen() -> None:
    combinations: list[Any] = [(c, s, r) for c in COLOURS for s in SHAPES for r in ROLES]
    kept = [combination for combination in combinations if not held_out(*combination)]
    assert len(combinations) - len(kept) == len(combinations) // 8
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert {(k[one], k[other]) for k in kept} == {(k[one], k[other]) for k in combinations}


@pytest.mark.parametrize("references", range(3))
def test_tasks_are_consistent(references: int) -> None:
    random = Random(1)
    for _ in range(1000):
        task = make(random, references)
        assert len(task.references) == references
        assert len(task.placed) == len(task.target.items)
        for scene in (task.target, *task.references):
            assert len({item.cell for item in scene.items}) == len(scene.items)
            assert len({item.name for item in scene.items}) == len(scene.items)


def test_text_captions_name_every_object_and_unusual_size() -> None:
    random = Random(2)
    for _ in range(1000):
        task = make(random, 0)
        for item in task.target.items:
            sized = item.name if item.size == "medium" else f"{item.size} {item.name}"
            assert sized in task.caption.lower()
        assert task.target.background in (task.caption if task.target.background != "white" else "white")


def test_every_caption_fits() -> None:
    tokenizer = _tokenizer(corpus(0))
    captions = corpus(1, 2000)
    assert max(len(tokenizer(PROMPT.format(caption))["input_ids"]) for caption in captions) <= MAX_TOKENS
    assert all(f" {word}" in tokenizer.decode(tokenizer(f" {word}")["input_ids"]) for word in (*COLOURS, *SIZES))
    messages = [{"role": "user", "content": captions[0]}]
    assert tokenizer.chat_template == CHAT_TEMPLATE
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    assert tokenizer.apply_chat_template(messages, **options) == PROMPT.format(captions[0])
