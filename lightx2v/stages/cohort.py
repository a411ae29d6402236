"""A cohort: jobs of one stage that pass its blocks together, so that a streamed block crosses the link once for all."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lightx2v.models.visits import Move, Pause, Visits


@dataclass(eq=False, slots=True)
class Member:
    """A job on its way through the rounds of a cohort. One of `done` and `failed` is called, once."""

    visits: Visits[Any]
    rounds: int
    """The rounds that it still takes."""
    member_bytes: int
    """Device bytes that it keeps while another member computes."""
    activation_bytes: int
    """Device bytes that it takes while it computes, the former included."""
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    is_over: bool = field(default=False, init=False)
    _has_begun: bool = field(default=False, init=False)

    def advance(self) -> Pause | None:
        """Computes until the next pause, and returns its place; None if the job is over."""
        self._has_begun = True
        try:
            return next(self.visits)
        except StopIteration as end:
            self.is_over = True
            self.done(end.value)
        except Exception as error:  # whatever it is: the other members go on
            self.is_over = True
            let_go(error)
            self.failed(error)
        return None

    def move(self, to: Move) -> None:
        """Moves its tensors, between two rounds."""
        if self._has_begun and not self.is_over:
            self.visits.send(to)


class Cohort:
    """The members of one stage within one grant. `begin` announces a pass over the blocks, and whether another one
    follows. `room`: device bytes beside weights. `width`: the most members."""

    def __init__(self, begin: Callable[[bool], None], room: int, width: int) -> None:
        self._begin, self._room, self._width = begin, room, width
        self.members: list[Member] = []

    def fits(self, member: Member) -> bool:
        """Whether `member` can join. A member that has the cohort for itself always can: the grant was made for it."""
        if not self.members:
            return True
        return len(self.members) < self._width and room_for([*self.members, member]) <= self._room

    def join(self, member: Member) -> None:
        """Adds a member, before its next round."""
        self.members.append(member)

    def run_round(self, others_wait: bool) -> None:
        """Runs one round: each member takes a step, or all of its work if that has no steps. All of them pass a block
        before the first goes on to the next. `others_wait`: whether further jobs want to join."""
        if any(member.rounds for member in self.members):
            self._begin(others_wait or any(member.rounds > 1 for member in self.members))
        going = self.members
        while going:
            going = [member for member in going if member.advance() is Pause.BLOCK]
        for member in self.members:
            member.rounds -= 1
        self.members = [member for member in self.members if not member.is_over]

    def move(self, to: Move) -> None:
        """Moves the tensors of all members off the device, or back."""
        for member in self.members:
            member.move(to)


def let_go(error: BaseException | None) -> None:
    """Clears the frames that an error keeps: activations in them would outlive the run."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def room_for(members: Iterable[Member]) -> int:
    """Device bytes of `members` besides weights, whoever of them computes."""
    members = list(members)
    computing = max((member.activation_bytes - member.member_bytes for member in members), default=0)
    return computing + sum(member.member_bytes for member in members)
