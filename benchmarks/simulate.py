"""The production policy on a virtual clock: one card in closed and open loop, and many cards behind a router.

    python -m benchmarks.simulate

prints, for each case, requests per second and quantiles of their seconds, and bytes per request beside the bound. It
takes under a minute.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil, inf
from statistics import quantiles
from time import process_time

from benchmarks.simulated_card import HOP, Card, Clock, Request
from benchmarks.simulated_models import CONTEXT, LINK, Model, klein, z_image
from deployments.card.members import CardMembers
from lightx2v.residency.bounds import most_per_second
from lightx2v.residency.gate import Gate
from lightx2v.residency.router import Router

GIB = 1 << 30


@dataclass
class Run:
    """The requests of a run that ended after `warm_up` seconds."""

    clock: Clock
    warm_up: float
    ended: list[Request] = field(default_factory=list)

    def end(self, request: Request) -> None:
        """Counts a request."""
        if self.clock.now >= self.warm_up:
            self.ended.append(request)


@dataclass(frozen=True)
class Figures:
    """What a run came to."""

    per_second: float
    p50: float
    p95: float
    worst: float
    moved: float
    """Bytes that crossed to the card per request."""


def closed_loop(
    budget: int, models: Sequence[Model], clients: int, seconds: float = 200.0, gate: Gate | None = None, seed: int = 0
) -> Figures:
    """Clients that send a request for one of the models, and the next one as soon as they have its answer."""
    clock, chance = Clock(), random.Random(seed)
    card, run = Card(clock, budget, models, gate), Run(clock, seconds / 5)

    def send() -> None:
        card.submit(Request(chance.choice(models), clock.now, answered))

    def answered(request: Request) -> None:
        run.end(request)
        clock.call_later(HOP, send)

    for _ in range(clients):
        clock.call_later(chance.random() / 10, send)
    return _figures(run, card, seconds)


def open_loop(
    budget: int, models: Sequence[Model], rate: float, seconds: float = 400.0, gate: Gate | None = None, seed: int = 0
) -> Figures:
    """Requests that arrive at random, `rate` a second in the mean, whatever is answered."""
    clock, chance = Clock(), random.Random(seed)
    card, run = Card(clock, budget, models, gate), Run(clock, seconds / 5)

    def arrive() -> None:
        card.submit(Request(chance.choice(models), clock.now, run.end))
        clock.call_later(chance.expovariate(rate), arrive)

    clock.call_later(chance.expovariate(rate), arrive)
    return _figures(run, card, seconds)


def _figures(run: Run, card: Card, seconds: float) -> Figures:
    run.clock.run(run.warm_up)
    moved = card.moved
    run.clock.run(seconds)
    times = [request.seconds for request in run.ended]
    cuts = quantiles(times, n=20)
    per_second = len(times) / (seconds - run.warm_up)
    return Figures(per_second, cuts[9], cuts[18], max(times), (card.moved - moved) / len(times))


def bound(budget: int, models: Sequence[Model], together: int) -> float:
    """Requests per second that no schedule beats, in equal parts of each model."""
    free = budget - CONTEXT * sum(len(model.stages) for model in models)
    each = [
        most_per_second(
            [stage.size for stage in model.stages],
            free,
            LINK,
            {stage.name: stage.work for stage in model.stages},
            together,
        )
        for model in models
    ]
    return len(each) / sum(1 / one for one in each)


@dataclass(frozen=True)
class FleetFigures:
    """What many cards came to."""

    offered: float
    goodput: float
    """Requests per second that arrived, and that were answered in time."""
    p95: float
    decision: float
    """Seconds that the router took to decide, in the mean."""


def fleet(cards: int, load: float = 0.8, seconds: float = 16.0, timeout: float = 10.0, seed: int = 0) -> FleetFigures:
    """Ten models of Zipf's shares of the load, on cards of 48 GiB of three models each (of all, if that takes more).
    `load`: of what the cards' arithmetic allows."""
    clock, chance, models, warm_up = Clock(), random.Random(seed), _ten(), seconds / 4
    shares = [1 / rank for rank in range(1, len(models) + 1)]
    hosts = {number: _hosted(number, cards, models, shares) for number in range(cards)}
    room = 48 * GIB
    simulated = _cards(clock, room, hosts)
    router = Router({n: (room, {model.name: model.reachable for model in hosted}) for n, hosted in hosts.items()}, LINK)
    rate = load * cards / (sum(map(_weighed, shares, models)) / sum(shares))
    arrived: list[Request] = []
    spent = 0.0

    def arrive() -> None:
        model = chance.choices(models, shares)[0]
        nonlocal spent
        began = process_time()
        number = router.route(model.name, model.seconds)
        spent += process_time() - began
        arrived.append(Request(model, clock.now, lambda request: router.ended(number, request.model.seconds)))
        simulated[number].submit(arrived[-1])
        clock.call_later(chance.expovariate(rate), arrive)

    clock.call_later(0.0, arrive)
    clock.run(seconds + timeout)
    counted = [request for request in arrived if warm_up <= request.admitted_at < seconds]
    times = [request.seconds if request.finished_at else inf for request in counted]
    in_time = sum(time <= timeout for time in times)
    return FleetFigures(
        len(counted) / (seconds - warm_up),
        in_time / (seconds - warm_up),
        sorted(times)[int(0.95 * len(times))],
        spent / len(arrived),
    )


def _cards(clock: Clock, room: int, hosts: Mapping[int, list[Model]]) -> dict[int, Card]:
    """The cards. Those of the same models share one plan."""
    plans: dict[frozenset[str], CardMembers] = {}
    cards = {}
    for number, hosted in hosts.items():
        key = frozenset(model.name for model in hosted)
        cards[number] = Card(clock, room, hosted, members=plans.get(key))
        plans[key] = cards[number].members
    return cards


def _weighed(share: float, model: Model) -> float:
    return share * model.seconds


def _ten() -> list[Model]:
    return [(klein if number % 2 == 0 else z_image)(f"model {number}") for number in range(10)]


def _hosted(number: int, cards: int, models: Sequence[Model], shares: Sequence[float]) -> list[Model]:
    """The models of a card: one in proportion to the load, and the next ones in turn."""
    many = max(3, ceil(len(models) / cards))
    at = (number + 0.5) / cards * sum(shares)
    home = bisect_left(list(accumulate(shares)), at)
    turn = [(number * (many - 1) + more) % len(models) for more in range(len(models))]
    others = [index for index in turn if index != home][: many - 1]
    return [models[index] for index in (home, *others)]


def show(name: str, figures: Figures, most: float) -> None:
    print(
        f"{name:<44} {figures.per_second:6.2f}/s = {figures.per_second / most:4.0%} of {most:.2f}   "
        f"p50 {figures.p50:5.2f} p95 {figures.p95:5.2f} max {figures.worst:5.1f} s   {figures.moved / 1e9:6.2f} GB"
    )


def show_fleet(cards: int, figures: FleetFigures) -> None:
    part = figures.goodput / figures.offered
    print(
        f"{f'{cards} cards, ten models, 80 % load':<44} {figures.goodput:6.2f}/s = {part:4.0%} of {figures.offered:.2f}"
        f"   p95 {figures.p95:5.2f} s   {figures.decision * 1e6:.0f} us a decision"
    )


def main() -> None:
    both = (klein(), z_image())
    for gib in (31.35, 24, 16, 12, 8):
        budget = int(gib * GIB)
        show(f"klein, 8 clients, {gib} GiB", closed_loop(budget, both[:1], 8), bound(budget, both[:1], 8))
    for gib in (31.35, 8):
        budget = int(gib * GIB)
        show(f"klein, 1 client, {gib} GiB", closed_loop(budget, both[:1], 1), bound(budget, both[:1], 1))
    show("both, 8 clients, 20 GiB", closed_loop(20 * GIB, both, 8), bound(20 * GIB, both, 8))
    show("both, 1 client, 20 GiB", closed_loop(20 * GIB, both, 1), bound(20 * GIB, both, 1))
    for gib in (31.35, 12):
        budget = int(gib * GIB)
        most = bound(budget, both[:1], 8)
        show(f"klein, 80 % load, {gib} GiB", open_loop(budget, both[:1], 0.8 * most), most)
    most = bound(20 * GIB, both, 8)
    show("both, 80 % load, 20 GiB", open_loop(20 * GIB, both, 0.8 * most), most)
    for cards in (1, 10, 100, 1000):
        show_fleet(cards, fleet(cards, seconds=4.0 if cards > 100 else 16.0))


if __name__ == "__main__":
    main()
