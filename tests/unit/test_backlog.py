"""The backlog: its order, its predictions, and what a crowd before the door gets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightx2v.residency.backlog import Backlog, Entry
from tests.unit.crowd import Crowd


def enter(
    backlog: Backlog, now: float = 0.0, *, caller: str = "", priority: int = 0, work: float = 1.0, model: str = "a"
) -> Entry:
    entry = backlog.propose(model, work, caller, priority, now)
    backlog.enter(entry, now)
    return entry


@pytest.fixture
def backlog() -> Backlog:
    """Both models have made one request: in 2 s that of a, and in 4 s that of b."""
    one = Backlog(["a", "b"])
    one.leave(enter(one, 0.0), "made", 2.0)
    one.leave(enter(one, 2.0, model="b"), "made", 6.0)
    return one


def seconds(backlog: Backlog, now: float = 6.0, work: float = 1.0, priority: int = 0, caller: str = "") -> float | None:
    return backlog.seconds(backlog.propose("a", work, caller, priority, now), now)


def test_nothing_is_predicted_before_anything_has_ended() -> None:
    backlog = Backlog(["a"])
    entry = enter(backlog)
    assert (seconds(backlog), backlog.seconds(entry, 1.0), backlog.drained_in("a", 1.0)) == (None, None, None)


def test_a_request_that_waits_for_nobody_takes_its_time_alone(backlog: Backlog) -> None:
    assert seconds(backlog) == 2.0
    assert seconds(backlog, work=3.0) == 6.0
    assert backlog.drained_in("a", 6.0) == 0.0


def test_a_request_waits_for_what_is_before_it_in_all_models(backlog: Backlog) -> None:
    first, second = enter(backlog, 6.0, model="b"), enter(backlog, 6.0)
    assert (seconds(backlog), backlog.seconds(second, 6.0), backlog.seconds(first, 6.0)) == (8.0, 6.0, 4.0)
    assert seconds(backlog, now=7.0) == 7.0, "what is served is shorter by the second that has passed"
    assert (backlog.position(first), backlog.position(second)) == (0, 1)
    assert (backlog.drained_in("a", 6.0), backlog.drained_in("b", 6.0)) == (6.0, 4.0)
    assert (backlog.count("a"), backlog.count("b"), backlog.count()) == (1, 1, 2)


def test_a_higher_priority_goes_first_after_what_is_served(backlog: Backlog) -> None:
    for _ in range(5):
        last = enter(backlog, 6.0)
    assert (seconds(backlog, priority=1), seconds(backlog), seconds(backlog, priority=-1)) == (4.0, 12.0, 12.0)
    assert backlog.position(last) == 4
    enter(backlog, 6.0, priority=1)
    assert backlog.position(last) == 5
    assert backlog.position(backlog.propose("a", 1.0, "", 1, 6.0)) == 2


def test_who_asks_for_little_goes_before_the_rest_of_who_asks_for_much(backlog: Backlog) -> None:
    for _ in range(10):
        enter(backlog, 6.0, caller="many")
    assert seconds(backlog, caller="many") == 22.0
    assert seconds(backlog, caller="one") == 4.0


def test_with_replicas_a_backlog_drains_faster_than_a_request_takes() -> None:
    """Four replicas: a request takes 4 s, and one ends each second."""
    backlog = Backlog(["a"])
    backlog.leave(enter(backlog, 0.0), "made", 4.0)
    inside = [enter(backlog, 4.0 + index) for index in range(4)]
    for index in range(30):
        backlog.leave(inside.pop(0), "made", 8.0 + index)
        inside.append(enter(backlog, 8.0 + index))
    assert seconds(backlog, now=37.0) == pytest.approx(5.0, rel=0.05)
    for entry in inside:
        backlog.leave(entry, "left", 37.0)
    assert seconds(backlog, now=37.0) == 4.0


def test_who_leaves_teaches_nothing(backlog: Backlog) -> None:
    backlog.leave(enter(backlog, 6.0), "left", 6.1)
    assert seconds(backlog, now=6.1) == 2.0


@given(st.data())
def test_the_predictions_keep_the_order(data: st.DataObject) -> None:
    backlog = Backlog(["a"])
    backlog.leave(enter(backlog, 0.0), "made", 2.0)
    entries = [
        enter(
            backlog,
            2.0,
            caller=data.draw(st.sampled_from("xyz")),
            priority=data.draw(st.integers(-10, 10)),
            work=data.draw(st.floats(0.1, 5)),
        )
        for _ in range(data.draw(st.integers(1, 12)))
    ]
    ranked = sorted(entries, key=backlog.position)
    assert [backlog.position(one) for one in ranked] == list(range(len(entries)))
    assert ranked[1:] == sorted(ranked[1:], key=lambda one: one.order), "the first one is served already"
    ends = [backlog.seconds(one, 2.0) or 0.0 for one in ranked]
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(2 * sum(one.work for one in entries))
    assert backlog.drained_in("a", 2.0) == pytest.approx(ends[-1])


@settings(max_examples=15)
@given(
    st.integers(1, 40),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([(1.0,), (0.25, 1.0, 2.0)]),
    st.sampled_from([{"a": 1.0}, {"a": 0.5, "b": 1.5}]),
)
def test_a_crowd_gets_what_the_server_can_make(
    clients: int, replicas: int, works: tuple[float, ...], service: dict[str, float]
) -> None:
    """From the first minute on, whatever the number of clients, replicas and models and the mix of sizes, and although
    nobody listens to Retry-After."""
    crowd = Crowd(clients, 12.0, service, replicas, works).run()
    settled = [at for at in crowd.late if at > 60]
    assert len(settled) <= 0.02 * len(crowd.made) + 1
    if len(service) == 1 and clients >= 3 * replicas:
        assert crowd.rate(60.0) >= 0.9 * replicas


def test_24_clients_make_what_two_make_and_nobody_is_late() -> None:
    two, many = Crowd(2, 5.0, {"a": 1.0}).run(), Crowd(24, 5.0, {"a": 1.0}).run()
    assert two.rate(30.0) == pytest.approx(1.0, rel=0.02)
    assert many.rate(30.0) >= 0.98 * two.rate(30.0)
    assert [at for at in many.late if at > 30] == []
    assert many.refused > 500


@pytest.mark.parametrize("replicas", [1, 4])
def test_a_slow_period_locks_nobody_out_for_good(replicas: int) -> None:
    crowd = Crowd(24, 5.0, {"a": 1.0}, replicas, slowness=lambda now: 8.0 if 100 < now < 150 else 1.0).run()
    assert crowd.rate(180.0) >= 0.95 * replicas


def test_a_first_request_that_loads_for_long_locks_nobody_out() -> None:
    crowd = Crowd(24, 5.0, {"a": 1.0}, slowness=lambda now: 30.0 if now < 1 else 1.0).run()
    assert crowd.rate(60.0) >= 0.95


def test_refused_callers_come_back_one_after_another(backlog: Backlog) -> None:
    """A request of model a takes 2 s."""
    entry = backlog.propose("a", 9.0, "", 0, 6.0)
    assert [backlog.come_back(entry, 1.0, 6.0) for _ in range(3)] == [1.0, 3.0, 5.0]
    assert backlog.come_back(entry, 1.0, 10.0) == 3.0, "it is counted from now"
    assert backlog.come_back(entry, 8.0, 10.0) == 8.0, "there is no room before"
    assert backlog.come_back(entry, 1.0, 60.0) == 1.0, "all of them have come back"
    assert [backlog.come_back(entry, 1.0, 60.0) for _ in range(99)][-1] == 60.0, "a client waits no longer"
