"""A member that fails leaves its memory, whoever keeps its error."""

from __future__ import annotations

import weakref

import torch

from lightx2v.models.visits import Pause, Visits
from lightx2v.residency.lease import Room
from lightx2v.stages.cohort import Cohort, Member


def test_an_error_holds_no_activations() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    errors: list[Exception] = []

    def work() -> Visits[None]:
        states = torch.empty(8)
        alive.append(weakref.ref(states))
        yield Pause.BLOCK
        raise ArithmeticError

    cohort = Cohort(lambda _: None, room=0, width=1)
    cohort.join(Member(work(), 1, Room(0, 0), errors.append, errors.append))
    cohort.run_round(others_wait=False)
    assert isinstance(errors[0], ArithmeticError)
    assert alive[0]() is None
    assert cohort.members == []
