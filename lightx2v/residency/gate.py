"""Which waiting stage gets the card next, and when a running one is recalled. Pure: the clock comes from the caller."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from lightx2v.residency.account import Run, Ticket
from lightx2v.residency.lease import Work
from lightx2v.types import STAGES

UNMEASURED_SECONDS = 1.0
"""What a job counts for while its stage has measured nothing."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The order of those that wait, the first one first:

    1. the one whose switch has begun;
    2. the one of the highest priority, and of equal ones:
    3. those that have waited for their bound, the oldest first;
    4. the model that ran last, its later stages first: what is begun ends before the card changes models;
    5. who has the most seconds of work for each byte that must move.

    The defaults come from `benchmarks.simulate` (H200, klein-9B beside Z-Image-Turbo under 20 GiB, eight clients). With
    a bound of 2, 5 and 10 s, the two make 1.33, 1.37 and 1.43 pictures a second. With a `share` of 0.1, 0.02 and 0,
    klein alone under 12 GiB at 80 % load has a median of 6.2, 3.8 and 3.8 s, and under 31.35 GiB, where a switch is
    cheap, one of 2.2, 2.4 and 3.4 s. Without the `moment`, two small models that take turns under a budget for one move
    4.75 MB a picture instead of 1.2, because at every hand-over the card changes models. To serve other models by the
    age of their oldest request instead of rule 5, or to let a model's new requests wait behind them, changed medians
    and 95 % quantiles by less than a fifth, in both directions.
    """

    age_bound: float = 10.0
    """Seconds: twice what a set of eight pictures takes. A ticket of a near deadline waits for half of its time."""
    link: float = 25e9
    """Bytes per second that cross to the card, about: a PCIe link of the fourth generation."""
    overhead: float = 0.03
    """Seconds of a switch besides what moves."""
    moment: float = 0.02
    """Seconds for which the model that ran last keeps what it has, if more of its work is about to come. A request that
    is alone on the card never waits for it."""
    share: float = 0.02
    """The most of the card's time that recalls for a lower mean wait may take."""

    def overdue_at(self, ticket: Ticket) -> float:
        """When a ticket has waited for its bound."""
        if ticket.since is None:
            return inf
        return ticket.since + min(self.age_bound, max(0.0, ticket.deadline - ticket.since) / 2)

    def is_overdue(self, ticket: Ticket, now: float) -> bool:
        """Whether a ticket has waited for its bound."""
        return now >= self.overdue_at(ticket)

    def key(self, ticket: Ticket, moved: int, last: tuple[str, str] | None, now: float) -> tuple[float, ...]:
        """Of two tickets the one of the lower key goes first. `moved`: bytes that move if it does. `last`: the plan
        that ran last."""
        stage, priority = -STAGES.index(ticket.holder.stage), -ticket.work.priority
        if ticket.is_begun:
            return (-inf, *ticket.rank)
        if self.is_overdue(ticket, now):
            return (priority, 0, ticket.since or 0.0, *ticket.rank)
        if ticket.holder.plan == last:
            return (priority, 1, stage, *ticket.rank)
        return (priority, 2, -seconds(ticket.work) / moved if moved else -inf, stage, *ticket.rank)

    def recall_at(self, ticket: Ticket, run: Run, moved: int) -> float:
        """When `run` is to be recalled for a ticket that does not fit beside it: infinity for never. `moved`: bytes
        that move because of the recall.

        A ticket of a higher priority gets the card, and one of the same that reached its age bound. A younger one does
        if the jobs of both wait less in the mean when it goes first, and if the run has lasted so long that such
        recalls take no more than `share` of it.
        """
        switch = self.overhead + moved / self.link
        left, due = seconds(run.work), self.overdue_at(ticket)
        if left <= switch or ticket.work.priority < run.work.priority:
            return inf
        if ticket.work.priority > run.work.priority:
            return run.began
        if ticket.work.jobs * left > run.work.jobs * (seconds(ticket.work) + switch):
            due = min(due, run.began + switch / self.share)
        return due


def seconds(work: Work) -> float:
    """Predicted seconds of computation."""
    return work.seconds or work.jobs * UNMEASURED_SECONDS
