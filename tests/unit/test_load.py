"""What the load generator does without a server, and its loops against a double of one."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from benchmarks.ask import Ask
from benchmarks.load.__main__ import parse
from benchmarks.load.answer import Answer
from benchmarks.load.arrivals import bursts, poisson
from benchmarks.load.bits import check, sample
from benchmarks.load.card_watch import CardWatch, watched
from benchmarks.load.client import Client
from benchmarks.load.loops import closed_loop, open_loop
from benchmarks.load.mix import Call, even, read_mix
from benchmarks.load.options import application
from benchmarks.load.queueing import md1_quantile, waits, waits_at_most
from benchmarks.load.summary import rate_within, ratio, steady_rate, summarise, warnings
from lightx2v.types import Size

ASK = Ask(Size(64, 64))
WIDE = Ask(Size(96, 64), model="b")


def answer(due: float, ended: float, status: int = 200, code: str = "", number: int = 1, sent: float = -1.0) -> Answer:
    return Answer(Call(ASK, number), due, due if sent < 0 else sent, ended, status, code, f"digest {number}")


def test_arrivals_have_the_rate_and_know_nothing_of_each_other() -> None:
    moments = poisson(50, 200, seed=3)
    assert len(moments) == 10_000
    assert list(moments) == sorted(moments)
    assert moments == poisson(50, 200, seed=3) != poisson(50, 200, seed=4)
    gaps = [after - before for before, after in pairwise(moments)]
    assert statistics.pstdev(gaps) == pytest.approx(statistics.fmean(gaps), rel=0.05), "exponential"


def test_bursts_come_at_one_moment() -> None:
    moments = bursts(2, 5, 100, seed=0)
    assert len(moments) == 200
    assert set(Counter(moments).values()) == {5}


def test_kinds_come_by_their_weights(tmp_path: Path) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text("- {size: 64x64, steps: 2}\n- {size: 96x64, model: b, weight: 3}\n")
    mix = read_mix(file)
    assert mix.asks == (Ask(Size(64, 64), steps=2), WIDE)
    calls = list(islice(mix.calls(count(1), seed=0), 1000))
    assert [call.number for call in calls] == list(range(1, 1001))
    assert sum(call.ask == WIDE for call in calls) == pytest.approx(750, abs=50)
    assert calls == list(islice(mix.calls(count(1), seed=0), 1000))


@pytest.mark.parametrize("wrong", ["size: 64x64", "[]", "- {steps: 3}", "- {size: 64x64, steeps: 3}", "- {size: 64}"])
def test_a_file_that_is_no_mix(wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(wrong)
    with pytest.raises(ValueError, match=r"mix\.yaml"):
        read_mix(file)


def test_the_rate_counts_while_all_clients_wait() -> None:
    """Also if the clients' pictures end together, as those of a cohort do."""
    even_ends = [float(end) for end in range(1, 13)]
    assert steady_rate(even_ends, clients=2) == pytest.approx(1)
    together = [float(group) for group in range(1, 5) for _ in range(8)]
    assert steady_rate(together, clients=8) == pytest.approx(8)
    with pytest.raises(ValueError, match="too few"):
        steady_rate(even_ends, clients=6)


def test_figures_of_answers() -> None:
    answers = [answer(0, 1), answer(0, 2), answer(1, 4), answer(2, 2.05, 503, "queue_full")]
    assert rate_within(answers, 2) == pytest.approx(1)
    assert rate_within(answers, 4, deadline=2.5) == pytest.approx(0.5)
    figures = summarise(answers, 1.0, deadline=2.5)
    assert (figures["requests"], figures["pictures"], figures["after_deadline"]) == (4, 3, 1)
    assert figures["seconds"]["p50"] == 2
    assert figures["failures"]["503 queue_full"]["count"] == 1
    assert figures["failures"]["503 queue_full"]["p99"] == pytest.approx(0.05)
    assert warnings(figures) == []
    (late,) = warnings(summarise([answer(0, 3, sent=1)], 1.0))
    assert "late" in late


def test_nothing_is_a_figure_too() -> None:
    figures = summarise([answer(0, 5, 504, "deadline_exceeded")], 0.0)
    assert (figures["pictures"], figures["seconds"]) == (0, {})
    assert (ratio(3, 0), ratio(3, 2)) == (None, 1.5)


def test_the_queue_of_a_server_that_always_takes_as_long() -> None:
    assert waits([0, 1, 1, 9], 2) == [0, 1, 3, 0]
    assert waits_at_most(0.8, 0) == pytest.approx(0.2), "who comes to an idle server"
    drawn = waits(poisson(0.8, 400_000, seed=1), 1)
    for share in (0.5, 0.95):
        formula = md1_quantile(0.8, share)
        assert statistics.quantiles(drawn, n=100)[round(share * 100) - 1] + 1 == pytest.approx(formula, rel=0.03)
    with pytest.raises(ValueError, match="beyond"):
        md1_quantile(0.99, 0.99)


def test_arguments() -> None:
    options = parse(["/fast/klein", "/fast/z", "--clients", "2", "--share", "0.8", "--check", "--set", "fp8=true"])
    assert (options.check, options.set) == (0, [("fp8", True)])
    models = application(options.targets, dict(options.set))["models"]
    assert models == [{"model": "/fast/klein", "name": "klein"}, {"model": "/fast/z", "name": "z"}]
    with pytest.raises(SystemExit):
        parse(["http://127.0.0.1:8000", "--share", "0.8"])


@dataclass
class Double:
    """A server that makes a picture of each prompt, once `go` is set; the numbers in `refused` only once."""

    refused: set[int] = field(default_factory=set)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    made: list[int] = field(default_factory=list)
    inside: int = 0
    most: int = 0
    suffix: str = ""

    async def generate(self, request: web.Request) -> web.Response:
        number = (await request.json())["seed"]
        if number in self.refused:
            self.refused.remove(number)
            error = {"error": {"code": "queue_full", "message": "too many"}}
            return web.json_response(error, status=503, headers={"Retry-After": "0"})
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.go.wait()
        self.inside -= 1
        self.made.append(number)
        return web.json_response({"data": [{"b64_json": f"picture {number}{self.suffix}"}]})

    async def residency(self, _: web.Request) -> web.Response:
        stage = {"model": "a", "stage": "denoise", "running": self.inside > 0, "jobs": self.inside}
        return web.json_response(
            {"gpus": [{"stages": [stage], "waiting": 0, "h2d_bytes_total": 1000 * len(self.made)}]}
        )


@asynccontextmanager
async def reached(double: Double) -> AsyncIterator[Client]:
    app = web.Application()
    app.router.add_post("/v1/images/generations", double.generate)
    app.router.add_get("/v1/residency", double.residency)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        async with Client(f"http://{host}:{port}") as client:
            yield client
    finally:
        await runner.cleanup()


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def test_a_closed_loop_has_as_many_requests_as_clients() -> None:
    double = Double(refused={2})
    async with reached(double) as client, asyncio.TaskGroup() as group:
        loop = group.create_task(closed_loop(client, even(ASK).calls(count(1), 0), clients=3, requests=10))
        await until(lambda: double.inside == 3)
        double.go.set()
        answers = await loop
    assert double.most == 3
    assert sorted(double.made) == [1, *range(3, 11)]
    assert sorted((one.status, one.code) for one in answers) == [(200, "")] * 9 + [(503, "queue_full")]


async def test_an_open_loop_waits_for_no_answer() -> None:
    double = Double()
    async with reached(double) as client, watched(client) as watch, asyncio.TaskGroup() as group:
        loop = group.create_task(open_loop(client, even(ASK).calls(count(1), 0), [0.0, 0.01, 0.01, 0.02]))
        await until(lambda: double.inside == 4)
        await until(lambda: watch.jobs)
        double.go.set()
        answers = await loop
    assert [one.due for one in sorted(answers, key=lambda one: one.call.number)] == sorted(one.due for one in answers)
    assert all(one.sent >= one.due for one in answers)
    assert watch.moved == 4000
    assert watch.cohorts()["a denoise"]["most"] == 4


async def test_pictures_are_compared_with_those_made_alone() -> None:
    double = Double()
    double.go.set()
    async with reached(double) as client:
        answers = await closed_loop(client, even(ASK).calls(count(1), 0), clients=2, requests=6)
        assert await check(client, answers) == []
        double.suffix = " of another kind"
        some = sample(answers, 4)
        assert len(some) == 4
        assert await check(client, some) == some
        double.refused = {some[0].call.number}
        with pytest.raises(RuntimeError, match="queue_full"):
            await check(client, some)
    assert double.most <= 2


async def test_a_server_that_is_not_there_answers_nothing() -> None:
    async with Client("http://127.0.0.1:9") as client:
        (one,) = await closed_loop(client, even(ASK).calls(count(1), 0), clients=1, requests=1)
    assert (one.status, one.is_picture) == (0, False)
    assert json.dumps(summarise([one], 0.0))


def test_a_server_that_tells_no_cohorts() -> None:
    watch = CardWatch()
    watch.look([{"stages": [{"model": "a", "stage": "encode", "running": True}]}])
    assert watch.cohorts() == {}
